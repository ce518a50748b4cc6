"""The banks of an engine: those that its operator declared, and those that the specs at hand need."""

from dataclasses import replace
from pathlib import Path

import torch

from sparsesteer.bank import Bank
from sparsesteer.edits import Edit
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE
from sparsesteer.serving.block_names import block_of
from sparsesteer.serving.residency import SiteBank
from sparsesteer.serving.served_spec import ServedSpec
from sparsesteer.serving.settings import DeclaredSite, Settings

_RULES = ("input_norm", "scale_rule", "gap", "preserve_norm", "sae_digest")


def banks_of(settings: Settings, specs: list[ServedSpec], slots: int, device: torch.device) -> list[SiteBank]:
    """Empty banks, the lower blocks first.

    Raises:
        ValueError, FileNotFoundError: an SAE that cannot be read, or one with a site that cannot be steered.
    """
    banks = [_declared(site, slots, device) for site in settings.sites]
    room = DeclaredSite("")
    for spec in specs:
        for block, plan in spec.by_block().items():
            if not any(each.block == block and _same_rules(each.bank, plan) for each in banks):
                like = _empty(plan).to(device, torch.float32)
                banks.append(SiteBank(block, Bank(like, capacity=room.features, slots=slots, entries=room.entries)))
    return sorted(banks, key=lambda each: each.block)


def _declared(site: DeclaredSite, slots: int, device: torch.device) -> SiteBank:
    sae = _read_sae(site.sae)
    if sae.transcoder:
        raise ValueError(f"{site.sae} is a transcoder, which is not served: one place is read and written")
    plan = sae.plan(Edit(), preserve_norm=site.preserve_norm).to(device, torch.float32)
    bank = Bank(plan, capacity=site.features, slots=slots, entries=site.entries)
    return SiteBank(block_of(sae.site if site.site is None else site.site), bank)


def _read_sae(name: str) -> SAE:
    if Path(name).expanduser().exists():
        return SAE.load_from_disk(Path(name).expanduser())
    release, _, sae_id = name.partition(":")
    return SAE.from_pretrained(release, sae_id)


def _empty(plan: SteeringPlan) -> SteeringPlan:
    """The rules of a plan without its features."""
    none = {name: getattr(plan, name)[:0] for name in ("encoder", "decoder", "rows", "features", "constant_features")}
    return replace(plan, **none, delta_bias=None)  # type: ignore[arg-type]


def _same_rules(bank: Bank, plan: SteeringPlan) -> bool:
    return all(getattr(bank, name) == getattr(plan, name) for name in _RULES) or (
        len(plan) == 0 and (bank.scale_rule, bank.preserve_norm) == (plan.scale_rule, plan.preserve_norm)
    )
