"""What files of tensors of ours have in common."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparsesteer.plain_json import parse_json
from sparsesteer.writing import write_whole


@dataclass(frozen=True)
class DescribedTensors:
    """A kind of safetensors file of ours: tensors, and in the header a JSON object that says what they are."""

    key: str  # of the description in the header
    what: str  # "a steering plan"
    written_by: str  # "plan.save(path)"
    version: int

    def save(self, path: str | os.PathLike, description: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
        """Write both, with the version; returns the path."""
        text = json.dumps({"version": self.version, **description}, sort_keys=True)
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return write_whole(path, save(stored, metadata={self.key: text}))

    def load(self, path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(description without its version, tensors).

        Raises:
            ValueError: no readable file, of another kind, or of another version.
            FileNotFoundError: there is none.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                text = (file.metadata() or {}).get(self.key)
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        if text is None:
            raise ValueError(f"{path} is a safetensors file but not {self.what}; write one with {self.written_by}")
        description = parse_json(text, f"the description in {path}")
        found = description.pop("version", None)
        if found != self.version:
            raise ValueError(f"{path} is {self.what} of version {found}, this sparsesteer reads {self.version}")
        return description, tensors
