"""What SPARE knows of the features of one SAE, and the edit that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from sparsesteer.activations import Activation, ReLU
from sparsesteer.edits import Edit
from sparsesteer.methods.spare.selection import Selection, check_vector
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE

FORMS = ("code", "paper")
SIDES = ("context", "memory")


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Of the F features of an SAE, over answers from the context and answers from memory.

    Args:
        mi: [F], mutual information of the activation with where the answer came from, in nats.
        mean_context: [F], the activation over answers from the context, as a plain or a weighted mean.
        mean_memory: [F], over answers from memory.
        mean_difference: [F], the plain mean over context minus that over memory, whose signs tell the sides.
    """

    mi: Tensor
    mean_context: Tensor
    mean_memory: Tensor
    mean_difference: Tensor

    @classmethod
    def checked(
        cls, sae: object, mi: object, context: object, memory: object, difference: object
    ) -> "FeatureStatistics":
        """Raises TypeError or ValueError for what does not fit the SAE."""
        if not isinstance(sae, SAE):
            raise TypeError(f"SPARE: sae should be an SAE, got {type(sae).__name__}")
        mi = check_vector("mi", mi, sae.d_sae)
        if (mi < 0).any():
            raise ValueError(f"SPARE: mutual information is not negative, feature {int(mi.argmin())} has {mi.min()}")
        context = check_vector("mean_context", context, sae.d_sae)
        memory = check_vector("mean_memory", memory, sae.d_sae)
        difference = context - memory if difference is None else check_vector("mean_difference", difference, sae.d_sae)
        return cls(mi, context, memory, difference)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def features(self, selection: Selection, side: str) -> list[int]:
        """The selected features of a side, by falling mutual information."""
        return selection.features(self.mi, self.mean_difference)[SIDES.index(side)]

    def edit(self, selection: Selection, toward: str, alpha: float, form: str) -> Edit:
        """Less of what belongs to the other side, and more of what belongs to this one."""
        lowered, raised = self.features(selection, other_side(toward)), self.features(selection, toward)
        return self.edit_of(lowered, raised, toward, alpha, form)

    def edit_of(self, lowered: Sequence[int], raised: Sequence[int], toward: str, alpha: float, form: str) -> Edit:
        """The same of given features."""
        means = {"context": self.mean_context.tolist(), "memory": self.mean_memory.tolist()}
        remove = {f: removed(means[other_side(toward)][f], alpha, form) for f in lowered}
        add = {f: added(means[toward][f], alpha, form) for f in raised}
        return Edit.hinge(remove | add)


def other_side(side: str) -> str:
    """Of "context" and "memory"."""
    return SIDES[1 - SIDES.index(side)]


def removed(mean: float, alpha: float, form: str) -> tuple[float, float, float, float]:
    """(c0, c1, c2, knot) of f - min(f, alpha mean), as the code has it, or of f - alpha min(f, mean)."""
    return (0.0, -1.0, 1.0, alpha * mean) if form == "code" else (0.0, -alpha, alpha, mean)


def added(mean: float, alpha: float, form: str) -> tuple[float, float, float, float]:
    """(c0, c1, c2, knot) of f + max(alpha mean - f, 0), as the code has it, or of f + alpha max(mean - f, 0)."""
    knot = alpha * mean
    return (knot, -1.0, 1.0, knot) if form == "code" else (knot, -alpha, alpha, mean)


def steered_activation(sae: SAE) -> Activation:
    """An SAE's own, but ReLU in place of TopK: codes are collected and edited without the mask."""
    return ReLU() if sae.k else sae.activation


def plan(sae: SAE, edit: Edit) -> SteeringPlan:
    """An edit of activations without TopK's mask."""
    return sae.plan(edit, activation=ReLU() if sae.k else None)


def check_named(what: str, name: str, names: tuple[str, ...]) -> None:
    """Raises ValueError for a name that is none of these."""
    if name not in names:
        raise ValueError(f"SPARE: {what} should be one of {', '.join(names)}, got {name!r}")
