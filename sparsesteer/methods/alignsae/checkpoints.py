"""Where training stands, as one file: weights, the optimiser's memory, and how every epoch went."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsesteer.files import DescribedTensors
from sparsesteer.methods.alignsae.network import Network
from sparsesteer.methods.alignsae.recipe import Recipe

CHECKPOINT = "checkpoint.safetensors"
_FILE = DescribedTensors(
    "sparsesteer.alignsae.checkpoint", "a checkpoint of AlignSAE", "AlignSAE.fit(folder=...)", version=1
)
_MAY_CHANGE = ("stage_two", "patience", "checkpoint_every")  # training may go on longer than was first said


@dataclass
class Progress:
    """What is known after some epochs: one mapping of numbers an epoch, and the best weights so far.

    Attributes:
        best: (epoch, score) of the kept weights; the score is compared as a pair.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_score: tuple[float, float] = (-1.0, 0.0)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """How many are done."""
        return len(self.history)


def save(
    folder: Path, network: Network, optimizer: torch.optim.Optimizer, progress: Progress, recipe: Recipe, data: str
) -> None:
    """Write the file."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_weights.items()}
    for place, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{place}.{name}": torch.as_tensor(value) for name, value in state.items()}
    description = {
        "recipe": asdict(recipe),
        "data": data,
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "best_score": list(progress.best_score),
    }
    _FILE.save(folder / CHECKPOINT, description, {name: tensor.clone() for name, tensor in tensors.items()})


def restore(
    folder: Path, network: Network, optimizer: torch.optim.Optimizer, recipe: Recipe, data: str
) -> Progress | None:
    """Put a checkpoint's state into both; None where the folder has none.

    Raises:
        ValueError: a damaged file; one of another recipe, of other states, or of other shapes.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    description, tensors = _FILE.load(path)
    _check_same(path, description, recipe, data)
    weights = _under("network.", tensors)
    _check_shapes(path, weights, network.state_dict())
    network.load_state_dict(weights)
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        place, _, what = name.partition(".")
        states.setdefault(int(place), {})[what] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    low, high = description["best_score"]
    return Progress(description["history"], description["best_epoch"], (low, high), _under("best.", tensors))


def _check_same(path: Path, description: Mapping[str, Any], recipe: Recipe, data: str) -> None:
    then, now = dict(description["recipe"]), json.loads(json.dumps(asdict(recipe)))
    for name in _MAY_CHANGE:
        then.pop(name, None), now.pop(name)
    differ = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if description["data"] != data:
        differ.append("the states")
    if differ:
        raise ValueError(
            f"AlignSAE: {path} is of a training that differs in {', '.join(differ)}; choose another folder to begin "
            "anew, or give what it was begun with to go on"
        )


def _check_shapes(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted({*found, *wanted}):
        shapes = [list(some[name].shape) if name in some else None for some in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"AlignSAE: {path} has {name} of shape {shapes[0]}, this training needs {shapes[1]}; choose another "
                "folder to begin anew"
            )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
