"""Which features are steered, and which behaviour each belongs to."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """How many features a layer gives: ``k`` of them, or as many as hold a ``share`` of all mutual information.

    Raises:
        ValueError: neither or both, a k below 1, a share outside of (0, 1].
    """

    k: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if (self.k is None) == (self.share is None):
            raise ValueError(
                "SPARE: give k, how many features are selected, or share, of all mutual information (the paper's K: "
                f"0.01 to 0.07); got k={self.k} and share={self.share}"
            )
        if self.k is not None and (not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1):
            raise ValueError(f"SPARE: k should be a positive whole number, got {self.k!r}")
        if self.share is not None and not (isinstance(self.share, int | float) and 0 < self.share <= 1):
            raise ValueError(f"SPARE: share should be above 0 and at most 1, got {self.share!r}")

    def count(self, falling: Tensor) -> int:
        """How many features, of mutual information [F] that falls.

        The fewest whose sum exceeds the share (the authors' code; equation 5 takes those that reach it).
        """
        if self.k is not None:
            return min(self.k, len(falling))
        assert self.share is not None
        sums = falling.double().cumsum(0)
        if not len(sums) or sums[-1] == 0:
            return 0
        below = int((sums <= sums[-1] * self.share).sum())
        return min(below + 1, len(falling))

    def features(self, mi: Tensor, difference: Tensor) -> tuple[list[int], list[int]]:
        """(features of context, features of memory), each by falling mutual information.

        Args:
            mi: [F]; of equal ones the lower feature comes first.
            difference: [F], mean activation over answers from context minus that over answers from memory. Where it is
                0, as of dead features, a feature is passed over and one of the next ones takes its place.
        """
        falling, ranked = mi.sort(descending=True, stable=True)
        count = self.count(falling)
        chosen = ranked[difference[ranked] != 0][:count]
        of_context = difference[chosen] > 0
        return chosen[of_context].tolist(), chosen[~of_context].tolist()


def check_vector(name: str, values: object, n_features: int) -> Tensor:
    """fp32 or fp64 [F] on the CPU. Raises TypeError or ValueError for anything else."""
    vector = torch.as_tensor(values).detach().cpu()
    if tuple(vector.shape) != (n_features,):
        raise ValueError(
            f"SPARE: {name} should have shape [{n_features}], the SAE's features, got {list(vector.shape)}"
        )
    if not vector.is_floating_point():
        raise TypeError(f"SPARE: {name} should be floating point, got {vector.dtype}")
    broken = (~torch.isfinite(vector)).nonzero()
    if len(broken):
        raise ValueError(f"SPARE: {name} has NaN or infinite values, the first at feature {int(broken[0])}")
    return vector if vector.dtype == torch.float64 else vector.float()
