"""Steering by mean states, without features: task vectors and the difference of means."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from sparsesteer.methods.baselines.control import Change, LastTokenControl
from sparsesteer.methods.baselines.states import check_vectors, chosen_sites, states_by_side
from sparsesteer.methods.spare.collection import Collection
from sparsesteer.methods.spare.statistics import SIDES


class TaskVector(LastTokenControl):
    """The state is replaced by the mean state of answers of the wanted kind (Hendel 2023; Todd 2024), h' = mean.

    Args:
        means: {"context": {site: [D]}, "memory": {site: [D]}}; ``fit`` makes them.

    Raises:
        TypeError, ValueError: means that are not of this form.
    """

    name = "TaskVec"

    def __init__(self, means: Mapping[str, Mapping[Any, Tensor]]) -> None:
        if set(means) != set(SIDES):
            raise ValueError(f"TaskVec: means of context and of memory are needed, got {list(means)}; fit makes them")
        self.means = {side: check_vectors(means[side], "TaskVec") for side in SIDES}

    @classmethod
    def fit(cls, found: Collection, sites: Iterable[Any] | None = None) -> "TaskVector":
        """From collected states. Raises ValueError for a missing site or answers of one kind."""
        by_site = {site: states_by_side(found, site, cls.name) for site in chosen_sites(found, sites)}
        return cls({side: {site: some[side].mean(0) for site, some in by_site.items()} for side in SIDES})

    def changes(self, toward: str) -> Mapping[Any, Change]:
        """See ``LastTokenControl``."""
        return {site: partial(_replaced, mean=mean) for site, mean in self.means[toward].items()}


class ActAdd(LastTokenControl):
    """The difference of mean states is added (Turner 2023): h' = h + scale (h_C - h_M) toward context, or minus it.

    Args:
        differences: {site: [D]}, mean over answers from the context minus that over memory; ``fit`` makes them.
        scale: 1 in the paper that SPARE is compared in.

    Raises:
        TypeError, ValueError: differences that are not of this form.
    """

    name = "ActAdd"

    def __init__(self, differences: Mapping[Any, Tensor], scale: float = 1.0) -> None:
        self.differences = check_vectors(differences, "ActAdd")
        self.scale = scale

    @classmethod
    def fit(cls, found: Collection, sites: Iterable[Any] | None = None, scale: float = 1.0) -> "ActAdd":
        """From collected states. Raises ValueError for a missing site or answers of one kind."""
        by_site = {site: states_by_side(found, site, cls.name) for site in chosen_sites(found, sites)}
        return cls({site: some["context"].mean(0) - some["memory"].mean(0) for site, some in by_site.items()}, scale)

    def changes(self, toward: str) -> Mapping[Any, Change]:
        """See ``LastTokenControl``."""
        signed = self.scale if toward == "context" else -self.scale
        return {site: partial(_added, vector=signed * each) for site, each in self.differences.items()}


def _replaced(h: Tensor, mean: Tensor) -> Tensor:
    return mean.to(h).expand_as(h)


def _added(h: Tensor, vector: Tensor) -> Tensor:
    return h + vector.to(h)
