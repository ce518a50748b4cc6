"""Spectral Editing of Activations (SEA, arXiv 2405.09719), linear and with the squared-exponential feature function."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsesteer.methods.baselines.control import Change, LastTokenControl
from sparsesteer.methods.baselines.states import chosen_sites, paired_states
from sparsesteer.methods.spare.collection import Collection
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.methods.spare.statistics import SIDES

_SMALLEST = 1e-4  # of what the logarithm is taken, as in the authors' program


@dataclass(frozen=True)
class FeatureFunction:
    """phi(h) = exp(-h^2 / 2 l^2) of each number and its inverse; with l None the identity.

    phi forgets signs: the inverse takes them from the state that entered.

    Args:
        length_scale: l, 1 in the authors' program. States far beyond it all become 0.
    """

    length_scale: float | None = None

    def __post_init__(self) -> None:
        if self.length_scale is not None and not self.length_scale > 0:
            raise ValueError(f"SEA: length_scale should be positive, got {self.length_scale!r}")

    def forward(self, h: Tensor) -> Tensor:
        """phi(h)."""
        return h if self.length_scale is None else torch.exp(-(h**2) / (2 * self.length_scale**2))

    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        """The x with phi(x) = y, as near as there is one, that has the signs of h."""
        if self.length_scale is None:
            return y
        return h.sign() * self.length_scale * torch.sqrt(-2 * torch.log(y.clamp(_SMALLEST, 1)))


class SpectralEditing(LastTokenControl):
    """Keeps what varies with states of the wanted kind, and of the rest what varies little with the others.

    With h+ and h- two states of one question, answered as wanted and not, h = (h+ + h-) / 2 the neutral state
    (our choice: the paper has prompts without an answer) and all of them behind the feature function phi:

        Omega+ = E[h h+^T] = U+ S+ V+^T,  k+ the fewest columns whose squared singular values are ``kept`` of all
        h' = c (phi^-1(U+_{<=k+} U+_{<=k+}^T phi(h)) + phi^-1(U-_{>k-} U-_{>k-}^T phi(h))),  c such that |h'| = |h|

    Args:
        projections: {"context": {site: (P+, P-)}, "memory": ...}, P [D, D]; ``fit`` makes them.
        function: phi.

    Raises:
        ValueError: projections that are not of this form.
    """

    def __init__(
        self,
        projections: Mapping[str, Mapping[Any, tuple[Tensor, Tensor]]],
        function: FeatureFunction,
    ) -> None:
        if set(projections) != set(SIDES) or not all(projections.values()):
            raise ValueError("SEA: projections toward context and memory are needed for each site; fit makes them")
        self.projections, self.function = projections, function
        self.name = "SEA linear" if function.length_scale is None else "SEA SqExp"

    @classmethod
    def fit(
        cls,
        found: Collection,
        conflicts: Sequence[Conflict],
        sites: Iterable[Any] | None = None,
        kept: float = 0.998,
        length_scale: float | None = None,
    ) -> "SpectralEditing":
        """From collected states of questions that were answered in both ways.

        Args:
            conflicts: what ``found`` was collected from; states are paired by question.
            kept: share of the squared singular values (the authors: 0.998 linear, 0.9999 squared-exponential).
            length_scale: of the squared-exponential function; linear without it.

        Raises:
            ValueError: a missing site, answers of one kind, no pairs, a share outside of (0, 1].
        """
        if not 0 < kept <= 1:
            raise ValueError(f"SEA: kept should be above 0 and at most 1, got {kept!r}")
        function = FeatureFunction(length_scale)
        projections: dict[str, dict[Any, tuple[Tensor, Tensor]]] = {side: {} for side in SIDES}
        for site in chosen_sites(found, sites):
            context, memory = paired_states(found, conflicts, site, "SEA")
            neutral, context, memory = map(function.forward, ((context + memory) / 2, context, memory))
            for_context, for_memory = (_spectrum(neutral, each, kept) for each in (context, memory))
            projections["context"][site] = for_context[0], for_memory[1]
            projections["memory"][site] = for_memory[0], for_context[1]
        return cls(projections, function)

    def changes(self, toward: str) -> Mapping[Any, Change]:
        """See ``LastTokenControl``."""
        return {site: _Edit(*pair, self.function) for site, pair in self.projections[toward].items()}


@dataclass(frozen=True, eq=False)
class _Edit:
    positive: Tensor
    negative: Tensor
    function: FeatureFunction

    def __call__(self, h: Tensor) -> Tensor:
        x = h.double()
        seen = self.function.forward(x)
        edited = sum(self.function.inverse(seen @ each.to(x), x) for each in (self.positive, self.negative))
        norms = torch.linalg.vector_norm(edited, dim=-1, keepdim=True)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / norms
        return torch.where(norms > 0, edited * scale, x).to(h.dtype)


def _spectrum(neutral: Tensor, other: Tensor, kept: float) -> tuple[Tensor, Tensor]:
    """Symmetric projections [D, D] onto the leading left singular vectors of E[h h'^T], and onto the others."""
    left, values, _ = torch.linalg.svd(neutral.T @ other / len(neutral))
    shares = (values**2 / (values**2).sum()).cumsum(0)
    count = min(int((shares < kept).sum()) + 1, len(shares))
    leading, rest = left[:, :count], left[:, count:]
    return leading @ leading.T, rest @ rest.T
