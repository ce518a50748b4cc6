"""What is compared: every method with the settings that it may have, and the control that a setting makes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsesteer.methods.baselines import (
    ActAdd,
    AddOnly,
    ContextAwareDecoding,
    ContrastingLayers,
    Control,
    InContext,
    InputIndependent,
    RandomFeatures,
    RemoveOnly,
    SpareControl,
    SpectralEditing,
    TaskVector,
)
from sparsesteer.methods.spare import SPARE
from sparsesteer.methods.spare.collection import Collection
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.methods.spare.selection import Selection
from sparsesteer.methods.spare.statistics import SIDES

Grid = Mapping[str, Sequence[Any]]
COUNTS = (8, 32, 128, 512)  # of selected features at each layer


@dataclass(frozen=True, eq=False)
class Fitted:
    """What controls are made of.

    Attributes:
        spare: statistics at the sites that have SAEs.
        collection: states at these and perhaps more sites, for methods without SAEs.
        collected: the prompts that it came from.
        pool: conflicts to demonstrate with.
        n_layers: blocks of the model.
    """

    spare: SPARE
    collection: Collection
    collected: Sequence[Conflict]
    pool: Sequence[Conflict]
    n_layers: int

    def selected(self, layers: Sequence[Any], k: int) -> SPARE:
        """SPARE at some of its sites, k features at each."""
        saes = {site: self.spare.saes[site] for site in layers}
        return SPARE(saes, {site: self.spare.statistics[site] for site in layers}, Selection(k=k), self.spare.about)


@dataclass(frozen=True)
class Contender:
    """A method: its settings, where their search begins, the control that one makes, and the directions that it has."""

    name: str
    make: Callable[[Mapping[str, Any], str], Control]  # of a setting and a direction
    grid: Grid
    start: Mapping[str, Any]
    sides: tuple[str, ...] = SIDES


def contenders(fitted: Fitted) -> dict[str, Contender]:
    """All of them by name, SPARE first."""
    some = [*_of_features(fitted), *_of_states(fitted), *_of_decoding(fitted), _none()]
    return {each.name: each for each in some}


def _of_features(fitted: Fitted) -> list[Contender]:
    sites = list(fitted.spare.saes)

    def of(kind: Callable[..., Control], counts: Sequence[int]) -> Contender:
        def make(setting: Mapping[str, Any], toward: str) -> Control:
            return kind(fitted.selected(setting["layers"], setting["k"]), alpha=setting["alpha"])

        grid = {"layers": runs(sites), "alpha": (0.5, 1.0, 2.0, 3.0, 4.0, 6.0), "k": counts}
        start = {"layers": sites, "alpha": 2.0, "k": counts[len(counts) // 2]}
        return Contender(kind.name, make, grid, start)  # type: ignore[attr-defined]

    matched = [k for k in COUNTS if _others_remain(fitted.spare, k)] or COUNTS[:1]
    some = [of(kind, COUNTS) for kind in (SpareControl, InputIndependent, RemoveOnly, AddOnly)]
    return [*some, of(RandomFeatures, matched)]


def _others_remain(spare: SPARE, k: int) -> bool:
    """Whether beside k features as many of either side are left to be drawn at random."""
    for known in spare.statistics.values():
        chosen = Selection(k=k).features(known.mi, known.mean_difference)
        alive = (known.mean_difference > 0).sum(), (known.mean_difference < 0).sum()
        if any(2 * len(some) > int(count) for some, count in zip(chosen, alive, strict=True)):
            return False
    return True


def _of_states(fitted: Fitted) -> list[Contender]:
    found, conflicts = fitted.collection, fitted.collected
    sites = list(found.states)
    single = [[site] for site in sites]
    middle = single[len(sites) // 2]

    def spectral(setting: Mapping[str, Any], toward: str) -> Control:
        return SpectralEditing.fit(found, conflicts, setting["layers"], setting["kept"], setting.get("length_scale"))

    def act_add(setting: Mapping[str, Any], toward: str) -> Control:
        return ActAdd.fit(found, setting["layers"], setting["scale"])

    def task_vector(setting: Mapping[str, Any], toward: str) -> Control:
        return TaskVector.fit(found, setting["layers"])

    kept = {"layers": runs(sites), "kept": (0.9, 0.99, 0.998, 0.9999)}
    return [
        Contender(
            "ActAdd",
            act_add,
            {"layers": runs(sites), "scale": (1.0, 2.0, 3.0, 4.0, 6.0)},
            {"layers": middle, "scale": 1.0},
        ),
        Contender("TaskVec", task_vector, {"layers": single}, {"layers": middle}),
        Contender("SEA linear", spectral, kept, {"layers": middle, "kept": 0.998}),
        Contender(
            "SEA SqExp",
            spectral,
            {"length_scale": (1.0, 16.0, 64.0), **kept},
            {"layers": middle, "kept": 0.9999, "length_scale": 1.0},
        ),
    ]


def _of_decoding(fitted: Fitted) -> list[Contender]:
    blocks = list(range(fitted.n_layers - 1))
    early, late = blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :]

    def aware(setting: Mapping[str, Any], toward: str) -> Control:
        return ContextAwareDecoding(_both_ways(setting["alpha"]))

    def contrasting(setting: Mapping[str, Any], toward: str) -> Control:
        return ContrastingLayers(setting["layers"], _both_ways(setting["alpha"]))

    def in_context(setting: Mapping[str, Any], toward: str) -> Control:
        return InContext(fitted.pool, setting["shots"])

    return [
        Contender("CAD", aware, {"alpha": (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)}, {"alpha": 0.6}),
        Contender(
            "DoLa",
            contrasting,
            {"layers": [early, late], "alpha": (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)},
            {"layers": early, "alpha": 1.0},
        ),
        Contender("ICL", in_context, {"shots": (3, 1, 2, 4, 5, 6)}, {"shots": 3}),
    ]


def _none() -> Contender:
    return Contender("none", lambda setting, toward: Control(), {}, {}, SIDES[:1])


def _both_ways(alpha: float) -> dict[str, float]:
    """As the authors have CAD and DoLa: forward toward context, and backward toward memory."""
    return {"context": alpha, "memory": -alpha}


def runs(sites: Sequence[Any]) -> list[list[Any]]:
    """Every site alone, all neighbouring pairs and triples, and all of them."""
    found = [list(sites[i : i + n]) for n in (1, 2, 3) for i in range(len(sites) - n + 1)]
    return found if list(sites) in found else [*found, list(sites)]
