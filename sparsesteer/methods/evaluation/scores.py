"""Whose answers they were: the paper's measures, their spread over seeds and their intervals."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY, Conflict, exact_match, normalized

Hits = NDArray[np.bool_]
Questions = Sequence[Sequence[Hashable]]  # of each seed's conflicts
MEASURES = {  # of what steering toward a side is to bring, and from which answers without steering
    "context": ("EM_C", "EM_M->C", "EM_C->C"),
    "memory": ("EM_M", "EM_C->M", "EM_M->M"),
}
_LETTER = {"context": "C", "memory": "M"}
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """A share over several seeds.

    Attributes:
        mean: over the seeds.
        sd: over the seeds, of a sample; NaN of one seed.
        low, high: 95 % bootstrap interval of the mean, questions drawn anew, each with all its seeds.
        n: answers that it is a share of, of all seeds.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def hits(conflicts: Sequence[Conflict], answers: Sequence[str], side: str, in_context: bool = False) -> Hits:
    """bool [n], whether an answer is one of the side's.

    Args:
        side: "context" or "memory".
        in_context: for Macnoise: an answer is the context's where it stands in the context shown. As in the authors'
            program an empty one does.
    """
    if side == "memory":
        found = [exact_match(a, c.org_answer) for c, a in zip(conflicts, answers, strict=True)]
    elif in_context:
        found = [normalized(a) in normalized(c.sub_context) for c, a in zip(conflicts, answers, strict=True)]
    else:
        found = [exact_match(a, c.sub_answer) for c, a in zip(conflicts, answers, strict=True)]
    return np.array(found, dtype=bool)


def behaviours(conflicts: Sequence[Conflict], answers: Sequence[str]) -> NDArray[np.int8]:
    """int8 [n], CONTEXT, MEMORY or NEITHER: where each answer came from."""
    return np.array([c.source_of(a) for c, a in zip(conflicts, answers, strict=True)], dtype=np.int8)


def measured(
    steered: Sequence[Hits], unsteered: Sequence[NDArray[np.int8]], questions: Questions, toward: str
) -> dict[str, Measured]:
    """All measures of steering toward a side.

    Args:
        steered: ``hits`` [n] of that side for each seed.
        unsteered: ``behaviours`` [n] of the same prompts without steering, for each seed.
        questions: [n] for each seed.
    """
    side = _LETTER[toward]
    found = {f"EM_{side}": share(steered, [np.ones_like(each) for each in steered], questions)}
    for letter, behaviour in (("C", CONTEXT), ("M", MEMORY)):
        among = [each == behaviour for each in unsteered]
        found[f"EM_{letter}->{side}"] = share(steered, among, questions)
    return {name: found[name] for name in MEASURES[toward]}


def share(found: Sequence[Hits], among: Sequence[Hits], questions: Questions, seed: int = 0) -> Measured:
    """The share of ``found`` [n] among some [n], seed by seed; NaN where there are none."""
    parts = by_question([f & a for f, a in zip(found, among, strict=True)], questions)
    wholes = by_question(among, questions)
    each = _ratio(parts.sum(1), wholes.sum(1))
    drawn = _resamples(parts.shape[1], seed)
    means = _mean(_ratio(drawn @ parts.T, drawn @ wholes.T), axis=1)
    low, high = np.nanpercentile(means, [2.5, 97.5]) if np.isfinite(means).any() else (np.nan, np.nan)
    sd = float(np.std(each, ddof=1)) if len(each) > 1 else float("nan")
    return Measured(float(_mean(each)), sd, float(low), float(high), int(wholes.sum()))


def difference(
    ours: Sequence[Hits], theirs: Sequence[Hits], questions: Questions, seed: int = 0
) -> tuple[float, float, float]:
    """(mean over the seeds of the difference of two shares, its 95 % interval), as ``share`` draws questions."""
    gaps = by_question([a.astype(float) - b for a, b in zip(ours, theirs, strict=True)], questions)
    wholes = by_question([np.ones_like(each) for each in ours], questions)
    drawn = _resamples(gaps.shape[1], seed)
    low, high = np.nanpercentile(_mean(_ratio(drawn @ gaps.T, drawn @ wholes.T), axis=1), [2.5, 97.5])
    return float(_mean(_ratio(gaps.sum(1), wholes.sum(1)))), float(low), float(high)


def by_question(values: Sequence[NDArray], questions: Questions) -> NDArray[np.float64]:
    """Sums [S, Q] of values [n] of S seeds, over the conflicts of each question that any seed asks."""
    numbers: dict[Hashable, int] = {}
    places = [[numbers.setdefault(question, len(numbers)) for question in some] for some in questions]
    return np.array([np.bincount(np.array(p, dtype=int), v, len(numbers)) for p, v in zip(places, values, strict=True)])


def as_json(found: Mapping[str, Measured]) -> dict[str, dict]:
    """Measures as plain data, NaN as null."""
    return {
        name: {key: None if value != value else value for key, value in vars(m).items()} for name, m in found.items()
    }


def _resamples(n: int, seed: int) -> NDArray[np.float64]:
    """How often each of n is drawn, [N_RESAMPLES, n]."""
    if not n:
        return np.zeros((N_RESAMPLES, 0))
    return np.random.RandomState(seed).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(float)


def _ratio(parts: NDArray, wholes: NDArray) -> NDArray:
    return np.divide(parts, wholes, out=np.full(np.shape(parts), np.nan), where=wholes > 0)


def _mean(values: NDArray, axis: int | None = None) -> NDArray:
    """The mean of what is no NaN; NaN of nothing."""
    real = np.isfinite(values)
    return _ratio(np.where(real, values, 0.0).sum(axis), real.sum(axis))
