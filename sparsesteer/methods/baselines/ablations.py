"""SPARE with a part taken away or exchanged: what its features, its limits and its two terms are for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsesteer import ops
from sparsesteer.edits import Edit
from sparsesteer.methods.baselines.control import Change, LastTokenControl
from sparsesteer.methods.spare.spare import SPARE
from sparsesteer.methods.spare.statistics import SIDES, FeatureStatistics, other_side, plan
from sparsesteer.plans import SteeringPlan


class _OfSpare(LastTokenControl):
    """Another edit from the features and means of a fitted SPARE."""

    def __init__(self, spare: SPARE, alpha: float = 2.0, form: str = "code") -> None:
        self.spare, self.alpha, self.form = spare, alpha, form
        self.plans = {side: self._plans(side) for side in SIDES}

    def changes(self, toward: str) -> Mapping[Any, Change]:
        """See ``LastTokenControl``."""
        return {site: partial(ops.steer, plan=each) for site, each in self.plans[toward].items()}

    def edit(self, known: FeatureStatistics, lowered: Sequence[int], raised: Sequence[int], toward: str) -> Edit:
        """What is done at a site, where SPARE lowers and raises these features."""
        return known.edit_of(lowered, raised, toward, self.alpha, self.form)

    def _plans(self, toward: str) -> dict[Any, SteeringPlan]:
        plans = {}
        for site, sae in self.spare.saes.items():
            known, selection = self.spare.statistics[site], self.spare.selection
            lowered, raised = known.features(selection, other_side(toward)), known.features(selection, toward)
            each = plan(sae, self.edit(known, lowered, raised, toward))
            plans[each.site if site is None else site] = each
        return plans


class RemoveOnly(_OfSpare):
    """Features of the other side are lowered; those of this side stay as they are (figure 4c)."""

    name = "remove only"

    def edit(self, known: FeatureStatistics, lowered: Sequence[int], raised: Sequence[int], toward: str) -> Edit:
        """See ``_OfSpare``."""
        return super().edit(known, lowered, (), toward)


class AddOnly(_OfSpare):
    """Features of this side are raised; those of the other side stay as they are (figure 4c)."""

    name = "add only"

    def edit(self, known: FeatureStatistics, lowered: Sequence[int], raised: Sequence[int], toward: str) -> Edit:
        """See ``_OfSpare``."""
        return super().edit(known, (), raised, toward)


class InputIndependent(_OfSpare):
    """The means themselves, whatever the activations are: no min and no max (figure 4c). Toward memory:

    h' = h - alpha sum_{S_C} zC_i W_dec_i + alpha sum_{S_M} zM_i W_dec_i
    """

    name = "input-independent"

    def edit(self, known: FeatureStatistics, lowered: Sequence[int], raised: Sequence[int], toward: str) -> Edit:
        """See ``_OfSpare``."""
        means = {"context": known.mean_context.tolist(), "memory": known.mean_memory.tolist()}
        away = {f: -self.alpha * means[other_side(toward)][f] for f in lowered}
        return Edit.add(away | {f: self.alpha * means[toward][f] for f in raised})


class RandomFeatures(_OfSpare):
    """As many other features, drawn at random, with their own means; each token's edit is as long as SPARE's.

    Drawn for either side from features that are not selected and whose mean difference has that side's sign.

    Raises:
        ValueError: there are fewer than SPARE selects.
    """

    name = "random features"

    def __init__(self, spare: SPARE, alpha: float = 2.0, form: str = "code", seed: int = 42) -> None:
        self.seed = seed
        self.whole = {side: _OfSpare(spare, alpha, form).plans[side] for side in SIDES}
        super().__init__(spare, alpha, form)

    def with_seed(self, seed: int) -> "RandomFeatures":
        """Other features."""
        return RandomFeatures(self.spare, self.alpha, self.form, seed)

    def changes(self, toward: str) -> Mapping[Any, Change]:
        """See ``LastTokenControl``."""
        return {site: _AsLong(self.whole[toward][site], each) for site, each in self.plans[toward].items()}

    def edit(self, known: FeatureStatistics, lowered: Sequence[int], raised: Sequence[int], toward: str) -> Edit:
        """See ``_OfSpare``."""
        taken = {*lowered, *raised}
        return super().edit(
            known,
            self._drawn(known, other_side(toward), len(lowered), taken),
            self._drawn(known, toward, len(raised), taken),
            toward,
        )

    def _drawn(self, known: FeatureStatistics, side: str, count: int, taken: set[int]) -> list[int]:
        """The same for both directions."""
        sign = 1 if side == "context" else -1
        pool = [f for f in (known.mean_difference * sign > 0).nonzero()[:, 0].tolist() if f not in taken]
        if len(pool) < count:
            raise ValueError(f"random features: {count} of {side} are to be drawn, {len(pool)} are not selected")
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(self.seed))
        return [pool[place] for place in order[:count].tolist()]


@dataclass(frozen=True, eq=False)
class _AsLong:
    """The edit of one plan, for each token as long as that of another."""

    measure: SteeringPlan
    plan: SteeringPlan

    def __call__(self, h: Tensor) -> Tensor:
        x = h.float()
        wanted, edit = (ops.steer(x, each) - x for each in (self.measure, self.plan))
        length, own = (torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (wanted, edit))
        return torch.where(own > 0, x + edit * (length / own), x).to(h.dtype)
