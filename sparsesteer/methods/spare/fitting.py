"""``SPARE.fit``: arguments checked, answers collected, features measured."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from sparsesteer.methods.information import ESTIMATORS
from sparsesteer.methods.spare.answering import Answerer
from sparsesteer.methods.spare.collection import Collection, collect, tracked
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.methods.spare.measuring import Estimate, confidence_weights, measured, plain_weights
from sparsesteer.methods.spare.processes import Processes
from sparsesteer.methods.spare.statistics import FeatureStatistics
from sparsesteer.model.places import Place
from sparsesteer.model.sites import ModelSites
from sparsesteer.sae import SAE

MEANS = ("plain", "confidence")


def fit_statistics(
    model: Any,
    tokenizer: Any,
    saes: Any,
    examples: Iterable[Any],
    layers: Any,
    estimate: Estimate,
    means: str,
    max_new_tokens: int,
    batch_size: int,
    folder: str | os.PathLike | None,
    progress: bool,
) -> tuple[dict[Any, SAE], dict[Any, FeatureStatistics], dict[str, Any]]:
    """(SAEs, statistics and how they came about); see ``SPARE.fit``."""
    if means not in MEANS or estimate.estimator not in ESTIMATORS:
        raise ValueError(
            f"SPARE: means should be one of {', '.join(MEANS)} and estimator one of {', '.join(ESTIMATORS)}, "
            f"got {means!r} and {estimate.estimator!r}"
        )
    chosen = chosen_saes(saes, layers)
    places = places_of(model, chosen)
    found = _collected(
        model, tokenizer, places, examples, means == "confidence", max_new_tokens, batch_size, folder, progress
    )
    check_counts(found, estimate.n_neighbors + 1)
    statistics = Processes.current().by_first(lambda: statistics_of(chosen, found, estimate, progress))
    about = {
        "answers": found.counts(),
        "means": means,
        "estimator": estimate.estimator,
        "n_neighbors": estimate.n_neighbors,
        "random_state": estimate.random_state if isinstance(estimate.random_state, int) else None,
    }
    return chosen, statistics, about


def collect_states(
    model: Any,
    tokenizer: Any,
    sites: Iterable[Any],
    examples: Iterable[Any],
    *,
    max_new_tokens: int = 12,
    batch_size: int = 8,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> Collection:
    """What ``SPARE.fit`` collects, for methods without features: answers, where they came from, states at the sites.

    With the same examples, sites and numbers it reads the folder of a ``SPARE.fit`` with plain means, which reads its.

    Args:
        sites: as ``ss.steer`` takes them.

    Raises:
        ValueError, TypeError: as ``SPARE.fit`` for these arguments.
    """
    places = places_of(model, dict.fromkeys(sites))
    return _collected(model, tokenizer, places, examples, False, max_new_tokens, batch_size, folder, progress)


def chosen_saes(saes: Any, layers: Any) -> dict[Any, SAE]:
    """{site: SAE} of the sites that are fitted; None is the site of an SAE that is given alone.

    Raises:
        TypeError, ValueError: what is no SAE, layers that the SAEs are not for, SAEs without sites.
    """
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Iterable)):
        layers = [layers]
    wanted = None if layers is None else list(layers)
    if isinstance(saes, SAE):
        given: dict[Any, Any] = {None: saes} if wanted is None else dict.fromkeys(wanted[:1], saes)
    elif isinstance(saes, Mapping):
        given = dict(saes)
    elif isinstance(saes, Sequence) and not isinstance(saes, str):
        given = _by_site(saes, wanted)
    else:
        raise TypeError(f"SPARE: saes should be an SAE, SAEs or {{site: SAE}}, got {type(saes).__name__}")
    if wanted is None:
        wanted = list(given)
    missing = [site for site in wanted if site not in given]
    if missing:
        raise ValueError(f"SPARE: there is no SAE for {_named(missing)}; there are SAEs for {_named(given) or 'none'}")
    for site in wanted:
        if not isinstance(given[site], SAE):
            raise TypeError(f"SPARE: the SAE for {site} should be an SAE, got {type(given[site]).__name__}")
    if not wanted:
        raise ValueError("SPARE: no layer was given")
    return {site: given[site] for site in wanted}


def places_of(model: Any, saes: Mapping[Any, SAE | None]) -> dict[Any, Place]:
    """Where the SAEs read in a model. Raises TypeError or ValueError for a site that it lacks, or of another width."""
    places = {}
    try:
        sites = ModelSites.of(model)
        for site, sae in saes.items():
            if site is None and (sae is None or sae.site.hook_name is None):
                raise ValueError("steer: the SAE knows no site; name one: SPARE.fit(model, tokenizer, {15: sae}, ...)")
            place = places[site] = sites.resolve(sae.site if sae is not None and site is None else site)
            if sae is not None and place.width not in (None, sae.d_in):
                raise ValueError(
                    f"steer: the SAE has width {sae.d_in}, the model has width {place.width} at {place.path}; "
                    "was the SAE made for this model?"
                )
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("steer: ", "SPARE: ", 1)) from error
    return places


def _collected(
    model: Any,
    tokenizer: Any,
    places: Mapping[Any, Place],
    examples: Iterable[Any],
    with_losses: bool,
    max_new_tokens: int,
    batch_size: int,
    folder: str | os.PathLike | None,
    progress: bool,
) -> Collection:
    for name, number in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"SPARE: {name} should be a positive whole number, got {number!r}")
    conflicts = [Conflict.of(each, number) for number, each in enumerate(examples)]
    if not conflicts:
        raise ValueError("SPARE: there are no examples")
    answerer = Answerer(model, tokenizer, places, max_new_tokens)
    return collect(
        answerer, conflicts, with_losses=with_losses, batch_size=batch_size, folder=folder, progress=progress
    )


def _by_site(saes: Sequence[Any], layers: list | None) -> dict[Any, Any]:
    """A sequence of SAEs beside as many layers, or by the sites that they know."""
    if layers is not None and len(layers) == len(saes):
        return dict(zip(layers, saes, strict=True))
    if layers is not None:
        raise ValueError(f"SPARE: {len(layers)} layers were given for {len(saes)} SAEs")
    names = [sae.site.hook_name if isinstance(sae, SAE) else None for sae in saes]
    if None in names or len(set(names)) < len(names):
        raise ValueError("SPARE: these SAEs do not all know sites of their own; give {site: SAE}, or layers as well")
    return dict(zip(names, saes, strict=True))


def check_counts(found: Collection, fewest: int) -> None:
    """Raises ValueError where answers of a kind are missing, or fewer than the estimator needs."""
    counts = found.counts()
    told = f"{counts['context']} answers came from the context, {counts['memory']} from memory, {counts['neither']} "
    told += "from neither"
    if not counts["context"] or not counts["memory"]:
        raise ValueError(
            f"SPARE: answers of both kinds are needed: {told}; demonstrations that answer from the context and from "
            "memory make a model do both (sparsesteer.methods.spare.with_demonstrations)"
        )
    if min(counts["context"], counts["memory"]) < fewest:
        raise ValueError(
            f"SPARE: too few answers: {told}; {fewest} of each kind are the least, the paper finds 128 enough"
        )


def statistics_of(
    saes: Mapping[Any, SAE], found: Collection, estimate: Estimate, progress: bool
) -> dict[Any, FeatureStatistics]:
    """Of the features of every SAE, whose site was collected."""
    labels = found.labels
    sample_weights = plain_weights(labels) if found.losses is None else confidence_weights(labels, found.losses)
    statistics = {}
    for site, sae in saes.items():
        what = "measuring features" if site is None else f"measuring features at {site}"
        bar: Callable = partial(tracked, what=what, progress=progress)
        with torch.no_grad():
            statistics[site] = measured(sae, found.states[site], labels, sample_weights, estimate, bar)
    return statistics


def _named(sites: Iterable[Any]) -> str:
    return ", ".join("the SAE's own site" if site is None else repr(site) for site in sites)
