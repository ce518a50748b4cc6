"""What moves a model's answers toward its context or its memory, in one form for SPARE and all it is compared with."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from sparsesteer.hooks import steer
from sparsesteer.methods.spare.answering import Answerer
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.methods.spare.spare import SPARE
from sparsesteer.methods.spare.statistics import SIDES, check_named


class Control:
    """No control at all. Others change the prompt, the hidden states or the next token's scores, or several of them.

    ``toward`` is "context" or "memory" everywhere.
    """

    name = "none"

    def with_seed(self, seed: int) -> "Control":
        """The same with other random choices, for controls that make any."""
        return self

    def shown(self, conflict: Conflict, toward: str) -> Conflict:
        """What the model is asked."""
        return conflict

    def apply(self, model: nn.Module, toward: str) -> AbstractContextManager:
        """Entered around the generation of one batch, of prompts padded on the left."""
        return nullcontext()

    def generation_options(self, answerer: Answerer, conflicts: Sequence[Conflict], toward: str) -> dict[str, Any]:
        """What ``model.generate`` is given besides, for a batch as it is shown."""
        return {}

    def answers(self, answerer: Answerer, conflicts: Sequence[Conflict], toward: str) -> list[str]:
        """The first line of the model's answer to each of one batch."""
        check_named("toward", toward, SIDES)
        shown = [self.shown(conflict, toward) for conflict in conflicts]
        options = self.generation_options(answerer, shown, toward)
        with self.apply(answerer.model, toward):
            return answerer.answers(shown, options)[0]


class SpareControl(Control):
    """Plans of a fitted SPARE at the last token of the prompt."""

    name = "SPARE"

    def __init__(self, spare: SPARE, alpha: float = 2.0, form: str = "code") -> None:
        self.plans = {side: spare.plan(side, alpha, form) for side in SIDES}

    def apply(self, model: nn.Module, toward: str) -> AbstractContextManager:
        """See ``Control``."""
        return steer(model, self.plans[toward], positions="last_prompt")
