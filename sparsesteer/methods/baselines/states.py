"""Collected states at one site, by where the answer came from."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sparsesteer.methods.spare.collection import Collection
from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY, NEITHER, Conflict

SIDE = {"context": CONTEXT, "memory": MEMORY}


def states_by_side(found: Collection, site: Any, method: str) -> dict[str, Tensor]:
    """fp64 {"context": [n, D], "memory": [m, D]}, states at the last token of prompts that were answered so.

    Raises:
        ValueError: a site that was not collected; answers of one kind only.
    """
    states = _states(found, site, method)
    by_side = {side: states[found.labels == label] for side, label in SIDE.items()}
    empty = [side for side, some in by_side.items() if not len(some)]
    if empty:
        raise ValueError(
            f"{method}: answers of both kinds are needed, none came from {' or '.join(empty)}; "
            "sparsesteer.methods.spare.with_demonstrations makes prompts that are answered in both ways"
        )
    return by_side


def paired_states(found: Collection, conflicts: Sequence[Conflict], site: Any, method: str) -> tuple[Tensor, Tensor]:
    """fp64 (context, memory) [P, D]: every two states of one question that was answered in both ways.

    Args:
        conflicts: what ``found`` was collected from.

    Raises:
        ValueError: as ``states_by_side``; other conflicts; no question was answered in both ways.
    """
    states_by_side(found, site, method)
    if len(conflicts) != len(found.answers):
        raise ValueError(f"{method}: {len(found.answers)} answers were collected, got {len(conflicts)} conflicts")
    kept = (found.sources != NEITHER).nonzero()[:, 0].tolist()
    rows: dict[str, dict[int, list[int]]] = {}
    for row, place in enumerate(kept):
        by_label = rows.setdefault(conflicts[place].question, {CONTEXT: [], MEMORY: []})
        by_label[int(found.sources[place])].append(row)
    pairs = [pair for by_label in rows.values() for pair in product(by_label[CONTEXT], by_label[MEMORY])]
    if not pairs:
        raise ValueError(f"{method}: no question was answered from context and from memory, so there are no pairs")
    states = _states(found, site, method)
    of_context, of_memory = torch.tensor(pairs).unbind(1)
    return states[of_context], states[of_memory]


def chosen_sites(found: Collection, sites: Iterable[Any] | None) -> list[Any]:
    """The sites to fit at; all that were collected by default."""
    return list(found.states) if sites is None else list(sites)


def check_vectors(vectors: Mapping[Any, Tensor], method: str) -> dict[Any, Tensor]:
    """{site: [D]}, given and not empty.

    Raises:
        TypeError, ValueError: what is no such mapping, or not finite.
    """
    if not isinstance(vectors, Mapping) or not vectors:
        raise ValueError(f"{method}: a vector for each site is needed, got {vectors!r}; fit makes them")
    for site, vector in vectors.items():
        if not isinstance(vector, Tensor) or vector.dim() != 1 or not vector.is_floating_point():
            raise TypeError(f"{method}: at {site} should be a floating-point vector [D], got {vector!r}")
        if not torch.isfinite(vector).all():
            raise ValueError(f"{method}: the vector at {site} has NaN or infinite values")
    return dict(vectors)


def _states(found: Collection, site: Any, method: str) -> Tensor:
    if site not in found.states:
        raise ValueError(f"{method}: no states were collected at {site!r}; there are states at {list(found.states)}")
    return found.states[site].double()
