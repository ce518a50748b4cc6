"""One form of a swap against another on the same swaps, and on the same questions about a third concept."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from study import Study

from sparsesteer.methods.alignsae.swapping import swaps_of
from sparsesteer.methods.evaluation.scores import difference

PAIRS = (("slot", "latent_decode"), ("move", "latent_decode"), ("move", "slot"))


def compared(study: Study, tested: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Strict success and damage of one form minus the other's, with 95 % intervals, entities drawn anew."""
    rows = []
    for ours, theirs in PAIRS:
        if ours in tested and theirs in tested:
            for name, questions in study.sets.test.items():
                swapped = [questions[swap.question].entity for swap in swaps_of(questions, study.test_swaps)]
                right = study.answers()[name]
                asked = [q.entity for q, known in zip(questions, right, strict=True) if known]
                found = [tested[form][name] for form in (ours, theirs)]
                strict = _difference([each["outcomes"] for each in found], swapped)
                damage = _difference([each["damaged"] for each in found], asked)
                rows.append({"ours": ours, "theirs": theirs, "set": name, "strict": strict, "damage": damage})
    return rows


def _difference(hits: Sequence[Sequence[bool]], entities: Sequence[str]) -> dict[str, float]:
    ours, theirs = (np.array(each, dtype=bool) for each in hits)
    mean, low, high = difference([ours], [theirs], [entities])
    return {"mean": mean, "low": low, "high": high}
