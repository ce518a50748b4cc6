"""Steering by what a prompt shows: demonstrations that answer as the model should."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from sparsesteer.methods.baselines.control import Control
from sparsesteer.methods.spare.conflicts import Conflict, demonstration


class InContext(Control):
    """Demonstrations with a substituted context, whose answer is the substituted one, or the original one.

    They take the place of those that a conflict has, and are the same for all conflicts of a seed.

    Args:
        pool: examples to demonstrate with, as ``SPARE.fit`` takes them, of other questions than those that are asked.
        shots: how many.

    Raises:
        ValueError: fewer than ``shots`` different questions.
    """

    name = "ICL"
    kinds: ClassVar = {"context": "ss", "memory": "so"}  # which context and answer, substituted (s) or original (o)

    def __init__(self, pool: Sequence[Any], shots: int = 3, seed: int = 42) -> None:
        self.pool = [Conflict.of(each, number) for number, each in enumerate(pool)]
        self.shots, self.seed = shots, seed
        first = {conflict.question: conflict for conflict in reversed(self.pool)}
        if not 1 <= shots <= len(first):
            raise ValueError(
                f"ICL: shots should be from 1 to {len(first)}, the different questions to demonstrate with, got {shots}"
            )
        questions = sorted(first)
        picked = np.random.RandomState(seed).choice(len(questions), shots, replace=False)
        self.picked = [first[questions[place]] for place in picked]

    def with_seed(self, seed: int) -> "InContext":
        """With other demonstrations."""
        return type(self)(self.pool, self.shots, seed)

    def shown(self, conflict: Conflict, toward: str) -> Conflict:
        """See ``Control``. Raises ValueError for a question that is demonstrated."""
        if any(each.question == conflict.question for each in self.picked):
            raise ValueError(f"ICL: {conflict.question!r} is demonstrated; ask other questions than those of the pool")
        return replace(conflict, demonstrations=tuple(demonstration(each, *self.kinds[toward]) for each in self.picked))
