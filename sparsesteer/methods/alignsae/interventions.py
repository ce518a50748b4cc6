"""Swapping one concept for another, in every published form and two of ours, each lowered to the one operator."""

import math
from numbers import Real

import torch
from torch import Tensor

from sparsesteer import weights
from sparsesteer._layout import N_COLUMNS, Column, InputNorm, OutputScale
from sparsesteer.edits import Edit
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE

FORMS = ("slot", "move", "latent_decode", "decoder_column", "decoder_column_both", "orthogonal", "mean_diff")
DIRECTIONS = FORMS[3:]
_TINY = 1e-8  # of the released code


def swap_plan(sae: SAE, source: int, target: int, alpha: float, form: str = "slot") -> SteeringPlan:
    """The plan of a swap between two features of an SAE; see ``AlignSAE.plan``.

    Raises:
        ValueError: another form, an alpha that is not finite, one feature twice.
    """
    if form not in FORMS:
        raise ValueError(f"AlignSAE: form should be one of {', '.join(FORMS)}, got {form!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not math.isfinite(alpha):
        raise ValueError(f"AlignSAE: alpha should be a finite number, got {alpha!r}")
    if source == target:
        raise ValueError("AlignSAE: source and target are the same concept; a swap needs two")
    if form in ("slot", "latent_decode"):
        edit = Edit.set({source: 0.0, target: float(alpha)})
        return sae.plan(edit, reconstruct=form == "latent_decode")
    if form == "move":
        return _move(sae, source, target, float(alpha))
    vector = float(alpha) * direction(*decoder_rows(sae, source, target), form)
    return relative_plan(sae, [target] if form == "decoder_column" else sorted((source, target)), vector)


def direction(source: Tensor, target: Tensor, form: str) -> Tensor:
    """What is added to a state of norm 1 at alpha 1, from the slots' decoder rows d_s and d_t [D].

    The released code's: "decoder_column" d_t, "decoder_column_both" d_t - d_s, both at length 1; "orthogonal" the same
    with the part of d_t along d_s taken out first; "mean_diff" d_t - d_s as they are, the difference at length 1.
    """
    if form == "decoder_column":
        return _unit(target)
    if form == "decoder_column_both":
        return _unit(target) - _unit(source)
    if form == "orthogonal":
        along = (target @ source) / (source @ source + _TINY)
        return _unit(target - along * source) - _unit(source)
    return _unit(target - source)


def relative_plan(sae: SAE, features: list[int], vector: Tensor) -> SteeringPlan:
    """Adds ||h|| times a vector [D] to a state h; ``features`` are those that it stands for."""
    width, device = sae.d_in, sae.device
    return SteeringPlan(
        encoder=torch.zeros(0, width, device=device),
        decoder=torch.zeros(0, width, device=device),
        rows=torch.zeros(0, N_COLUMNS, device=device),
        features=torch.zeros(0, dtype=torch.int64, device=device),
        constant_features=torch.tensor(features, dtype=torch.int64, device=device),
        delta_bias=vector.float().to(device),
        input_norm=InputNorm.NONE,
        scale_rule=OutputScale.NORM,
        site=sae.site,
        sae_digest=sae.digest,
    )


def decoder_rows(sae: SAE, *features: int) -> list[Tensor]:
    """fp32 [D] each."""
    return list(weights.rows(sae.W_dec, torch.tensor(features, device=sae.device)).float())


def _move(sae: SAE, source: int, target: int, alpha: float) -> SteeringPlan:
    """h + z_s (alpha d_t - d_s): what the source slot has goes to the target's, and where it has nothing, nothing."""
    plan = sae.plan(Edit.ablate([source]))
    d_source, d_target = decoder_rows(sae, source, target)
    rows = plan.rows.clone()
    rows[:, Column.C1] = 1.0
    moved = (alpha * d_target - d_source)[None].to(plan.decoder)
    return SteeringPlan(
        encoder=plan.encoder,
        decoder=moved,
        rows=rows,
        features=plan.features,
        input_norm=plan.input_norm,
        scale_rule=plan.scale_rule,
        site=plan.site,
        sae_digest=plan.sae_digest,
    )


def _unit(vector: Tensor) -> Tensor:
    return vector / (vector.norm() + _TINY)
