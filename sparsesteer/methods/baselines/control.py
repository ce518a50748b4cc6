"""What moves a model's answers toward its context or its memory, in one form for SPARE and all it is compared with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from sparsesteer import ops
from sparsesteer.methods.spare.answering import Answerer
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.methods.spare.spare import SPARE
from sparsesteer.methods.spare.statistics import SIDES, check_named
from sparsesteer.model.sites import ModelSites
from sparsesteer.plans import SteeringPlan

Change = Callable[[Tensor], Tensor]  # of hidden states [B, D] at the last token of B prompts


class Control:
    """No control at all. Others change the prompt, the hidden states or the next token's scores.

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
        """Entered anew around each generation, of prompts padded on the left."""
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


class LastTokenControl(Control):
    """Changes hidden states at the last token of the prompt: the last column of the first call after entering.

    So the prompt may also be in a cache but for its last token.
    """

    def changes(self, toward: str) -> Mapping[Any, Change]:
        """{site: change}, sites named as ``ss.steer`` takes them."""
        raise NotImplementedError

    @contextmanager
    def apply(self, model: nn.Module, toward: str) -> Iterator[None]:
        """See ``Control``. Raises ValueError for a site that the model lacks."""
        sites = ModelSites.of(model)
        with ExitStack() as hooks:
            for site, change in self.changes(toward).items():
                hooks.callback(sites.resolve(site).attach(_AtFirstCall(change)))
            yield


class SpareControl(LastTokenControl):
    """Plans of a fitted SPARE."""

    name = "SPARE"

    def __init__(self, spare: SPARE, alpha: float = 2.0, form: str = "code") -> None:
        self.plans = {side: by_site(spare.plan(side, alpha, form)) for side in SIDES}

    def changes(self, toward: str) -> Mapping[Any, Change]:
        """See ``LastTokenControl``."""
        return {site: partial(ops.steer, plan=plan) for site, plan in self.plans[toward].items()}


def by_site(plan: SteeringPlan | Mapping[Any, SteeringPlan]) -> dict[Any, SteeringPlan]:
    """Plans by site, also where one is given alone, whose SAE knows its site."""
    return {plan.site: plan} if isinstance(plan, SteeringPlan) else dict(plan)


class _AtFirstCall:
    """Changes the last column of what passes a place first."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.done = False

    def __call__(self, h: Tensor) -> Tensor:
        if self.done:
            return h
        self.done = True
        changed = h.clone()
        last = h[:, -1].flatten(1)  # TransformerLens shows heads
        changed[:, -1] = self.change(last).to(h.dtype).view_as(h[:, -1])
        return changed
