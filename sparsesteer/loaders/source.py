"""What the caller pointed at, and what he said that no file can tell."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsesteer.activations import TopK
from sparsesteer.loaders.containers.npz import open_npz
from sparsesteer.loaders.containers.torch_file import open_torch_file
from sparsesteer.loaders.named_tensors import NamedTensors
from sparsesteer.sae import SAE
from sparsesteer.site import Site
from sparsesteer.storage import open_safetensors, parse_json

_LARGEST_TEXT = 16 << 20
_OPEN: dict[str, Callable[[Path], Mapping[str, object]]] = {
    ".safetensors": open_safetensors,
    ".npz": open_npz,
    ".pt": open_torch_file,
    ".pth": open_torch_file,
}


@dataclass(frozen=True)
class Source:
    """A folder, or one file of it, and the caller's own word on site and k."""

    folder: Path
    file: Path | None = None  # the one that the caller pointed at
    site: Site | None = None
    k: int | None = None

    @classmethod
    def of(cls, path: str | os.PathLike, site: Site | None = None, k: int | None = None) -> "Source":
        """Raises FileNotFoundError for nothing, ValueError for what is neither a folder nor a file."""
        path = Path(path)
        if path.is_dir():
            return cls(path, None, site, k)
        if not path.exists():
            raise FileNotFoundError(f"no such file or folder: {path}")
        if not path.is_file():
            raise ValueError(f"{path} is neither a folder nor a regular file")
        # Llama Scope keeps its weights in a folder of their own
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        return cls(folder, path, site, k)

    @property
    def path(self) -> Path:
        """What the caller pointed at."""
        return self.folder if self.file is None else self.file

    def has(self, weights: str, *others: str) -> bool:
        """True if the folder has these files and the caller, if he pointed at a file, at the weights."""
        pointed = self.file in (None, self.folder / weights)
        return pointed and all((self.folder / name).is_file() for name in (weights, *others))

    def text(self, name: str) -> bytes:
        """A file of the folder that describes others."""
        file = self.inside(name)
        if file.stat().st_size > _LARGEST_TEXT:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, too many for a configuration")
        return file.read_bytes()

    def json(self, name: str) -> dict:
        """A file of the folder as a JSON object."""
        return parse_json(self.text(name), str(self.folder / name))

    def tensors(self, name: str) -> NamedTensors:
        """The tensors of a file of the folder."""
        return _opened(self.inside(name))

    @cached_property
    def own_tensors(self) -> NamedTensors | None:
        """The tensors of the file that the caller pointed at, None if that is a folder or no file of tensors."""
        return _opened(self.file) if self.file is not None and self.file.suffix in _OPEN else None

    def match(self, pattern: str) -> re.Match | None:
        """Where the whole path, with forward slashes, has ``pattern``; the last place if there are several.

        Published SAEs tell model, site and layer by the names of their repositories and folders.
        """
        found = list(re.finditer(pattern, self.path.absolute().as_posix()))
        return found[-1] if found else None

    def chosen_k(self, told: object) -> int:
        """k of a TopK SAE: as the file tells, or else as the caller says."""
        if told is None:
            told = self.k
        if told is None:
            raise ValueError(f"{self.path}: this TopK SAE does not tell its k; give it: load_from_disk(path, k=...)")
        if type(told) is not int or told < 1:
            raise ValueError(f"{self.path}: k should be a positive integer, got {told!r}")
        if self.k not in (None, told):
            raise ValueError(f"{self.path}: k is {told}, but k={self.k} was given; leave it out")
        return told

    def sae(self, site: Site, **parts: Any) -> SAE:
        """The SAE of these parts at the site that its files, their path and the caller tell.

        Raises:
            ValueError: parts that disagree, and a site or a k that contradict what was given.
        """
        if self.k is not None and not isinstance(parts["activation"], TopK):
            raise ValueError(f"{self.path}: k={self.k} was given, but this SAE is no TopK SAE; leave it out")
        site = self._joined(site)
        if parts.get("transcoder") is None:  # no file says it, but the site does
            parts["transcoder"] = site.hook_name_out not in (None, site.hook_name)
        return build(str(self.path), site=site, **parts)

    def _joined(self, told: Site) -> Site:
        names = {}
        for name in ("model_name", "hook_name", "hook_name_out", "neuronpedia_id"):
            own, given = getattr(told, name), getattr(self.site, name, None)
            if None not in (own, given) and own != given:
                raise ValueError(
                    f"{self.path}: {name} is {own!r} by its files or path, but {given!r} was given; "
                    "to use another, set sae.site after loading"
                )
            names[name] = given if own is None else own
        return replace(told, **names, source=str(self.path))

    def inside(self, name: str) -> Path:
        """A file of the folder, made sure to lie in it, or in the store of the Hugging Face cache it is part of."""
        file = self.folder / name
        if not file.is_file():
            raise ValueError(f"{self.folder} is not a known SAE: {name} is missing")
        target = file.resolve()
        if file != self.file and not any(target.is_relative_to(home) for home in _homes(self.folder)):
            raise ValueError(f"{file} is a link to {target}, outside of its folder; put the file itself here")
        return file


def build(where: str, **parts: Any) -> SAE:
    """The SAE of these parts; what is wrong with them is said with the name of their file."""
    try:
        return SAE(**parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _opened(file: Path) -> NamedTensors:
    return NamedTensors(str(file), _OPEN[file.suffix](file))


def _homes(folder: Path) -> list[Path]:
    folder = folder.absolute()
    stores = [above.parent / "blobs" for above in (folder, *folder.parents) if above.name == "snapshots"]
    return [folder.resolve(), *(store.resolve() for store in stores)]
