"""``AlignSAE.fit``: arguments checked, states collected, the network trained."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.network import ValueHeads
from sparsesteer.methods.alignsae.recipe import Recipe
from sparsesteer.methods.alignsae.states import collect
from sparsesteer.methods.alignsae.training import Trainer, check_labels, check_range
from sparsesteer.methods.spare.collection import tracked
from sparsesteer.model.places import Place
from sparsesteer.model.sites import ModelSites
from sparsesteer.sae import SAE
from sparsesteer.site import Site


def fit(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    labels: Sequence[Any],
    site: Any,
    concepts: Sequence[str] | None,
    answers: Sequence[str] | None,
    validation: tuple[Sequence[str], Sequence[Any]] | None,
    base: SAE | None,
    recipe: Recipe,
    folder: str | os.PathLike | None,
    batch_size: int,
    device: torch.device | str | None,
    progress: bool,
) -> tuple[SAE, tuple[str, ...], ValueHeads | None, dict[str, Any]]:
    """(SAE, concepts, value heads, about); see ``AlignSAE.fit``."""
    names, numbers = numbered(labels, concepts)
    _check_lengths("prompts", prompts, labels)
    if answers is not None:
        _check_lengths("prompts", prompts, answers)
    check_labels(torch.tensor(numbers), len(names), names)
    answerer = Answerer(model, tokenizer)
    places = places_of(model, [site])
    bar = partial(tracked, what="reading prompts", progress=progress)
    with ExitStack() as stack:
        if folder is None:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            kept = Path(folder)
        states = collect(answerer, places, prompts, numbers, answers, kept / "states", batch_size, bar)[site]
        held_out = None
        if validation is not None:
            _check_lengths("validation prompts", *validation)
            _, known = numbered(validation[1], names)
            held_out = collect(answerer, places, validation[0], known, None, kept / "validation", batch_size)[site]
        trainer = Trainer(
            states,
            len(names),
            recipe,
            names=names,
            validation=held_out,
            base=base,
            folder=None if folder is None else kept,
            device=answerer.device if device is None else device,
            progress=progress,
        )
        network = trainer.run()
    about = {
        "recipe": asdict(recipe),
        "history": trainer.progress.history,
        "best_epoch": trainer.progress.best_epoch + 1,
        "prompts": len(prompts),
    }
    hook = Site(model_name=getattr(model, "name_or_path", None) or None, hook_name=hook_name(places[site], site))
    heads = None if network.heads is None else network.heads.cpu().eval()
    return network.cpu().sae(hook), names, heads, about


def numbered(labels: Sequence[Any], concepts: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
    """(names, the place of each label among them). Raises ValueError or TypeError for labels that are none of them."""
    if not len(labels):
        raise ValueError("AlignSAE: there are no prompts")
    plain = [label.item() if hasattr(label, "item") else label for label in labels]
    if all(isinstance(label, str) for label in plain):
        names = tuple(sorted(set(plain))) if concepts is None else tuple(concepts)
        unknown = sorted(set(plain) - set(names))
        if unknown:
            raise ValueError(f"AlignSAE: the label {unknown[0]!r} is none of the concepts {', '.join(names)}")
        return names, [names.index(label) for label in plain]
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in plain):
        raise TypeError("AlignSAE: labels are all whole numbers or all names")
    names = tuple(map(str, range(max(plain) + 1))) if concepts is None else tuple(concepts)
    check_range(torch.tensor(plain), len(names))
    return names, plain


def places_of(model: Any, sites: Sequence[Any]) -> Mapping[Any, Place]:
    """Where states are read. Raises TypeError or ValueError for a site that the model lacks."""
    try:
        known = ModelSites.of(model)
        return {site: known.resolve(site) for site in sites}
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("steer: ", "AlignSAE: ", 1)) from error


def hook_name(place: Place, site: Any) -> str | None:
    """The name by which the SAE remembers its site."""
    if isinstance(site, int):
        return f"blocks.{site}.hook_resid_post"
    return site.hook_name if isinstance(site, Site) else str(site)


def _check_lengths(what: str, some: Sequence[Any], others: Sequence[Any]) -> None:
    if len(some) != len(others):
        raise ValueError(f"AlignSAE: there are {len(some)} {what}, and {len(others)} labels or answers for them")
