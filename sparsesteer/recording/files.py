"""Recordings as plain Python and as files."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsesteer.files import DescribedTensors, write_whole

if TYPE_CHECKING:
    from sparsesteer.recording.recording import Recording

_FILE = DescribedTensors("recording", "a recording", "recording.save(path)", version=1)
_DTYPES = {
    "tokens": (torch.int64,),
    "sequences": (torch.int64,),
    "positions": (torch.int64,),
    "generated": (torch.bool,),
    "before": (torch.float32, torch.float64),
    "after": (torch.float32, torch.float64),
}


def as_dict(recording: "Recording") -> dict:
    """See ``Recording.to_dict``."""
    return {
        "version": _FILE.version,
        "features": [asdict(each) for each in recording.features],
        "sequences": [_sequence(number, recording.sequence(number)) for number in recording.sequence_numbers],
    }


def _sequence(number: int, recording: "Recording") -> dict:
    texts = recording.texts
    columns = {name: tensor.tolist() for name, tensor in recording.entries._asdict().items() if name != "sequences"}
    return {"number": number, "texts": None if texts is None else list(texts), **columns}


def save(recording: "Recording", path: Path) -> Path:
    """See ``Recording.save``."""
    if path.suffix == ".json":
        return write_whole(path, json.dumps(finite(as_dict(recording)), ensure_ascii=False).encode())
    if path.suffix != ".safetensors":
        raise ValueError(f"Recording.save: the file should end with .safetensors or .json, got {path.name!r}")
    texts = recording.texts
    description = {
        "features": [asdict(each) for each in recording.features],
        "texts": None if texts is None else list(texts),
    }
    return _FILE.save(path, description, recording.entries._asdict())


def load(path: Path) -> tuple[list[tuple[str, int]], dict[str, Tensor], list[str] | None]:
    """(site and feature of each column, the tensors of the tokens, their texts); see ``Recording.load``."""
    description, tensors = _FILE.load(path)
    try:
        features = [(str(each["site"]), int(each["feature"])) for each in description["features"]]
        texts = description["texts"]
        n = len(tensors["tokens"])
        shapes = {name: (n, len(features)) if name in ("before", "after") else (n,) for name in _DTYPES}
        fits = tensors.keys() == _DTYPES.keys() and all(
            tuple(tensors[name].shape) == shapes[name] and tensors[name].dtype in _DTYPES[name] for name in _DTYPES
        )
        fits = fits and (texts is None or [type(each) for each in texts] == [str] * n)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a complete recording: {error!r}") from error
    if not fits:
        raise ValueError(f"{path} is not a complete recording: its tensors do not fit each other")
    return features, tensors, texts


def finite(value: Any) -> Any:
    """The same with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
