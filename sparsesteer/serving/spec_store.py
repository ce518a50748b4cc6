"""Specs by id and name, in memory and in an operator's folder, from which a restarted server has them again."""

import os
from pathlib import Path

from sparsesteer.files import write_whole
from sparsesteer.serving import spec_files
from sparsesteer.serving.limits import Limits
from sparsesteer.serving.served_spec import ServedSpec
from sparsesteer.serving.wishes import check_name

_SUFFIX = ".safetensors"
_NAMES = "names"


class SpecStore:
    """A folder has ``<id>.safetensors`` for each spec and ``names/<name>`` for each name, which holds the id.

    Args:
        folder: made if it is not there; None keeps specs in memory alone.

    Raises:
        ValueError: a file in the folder that is no spec, or whose content is another than its name says.
    """

    def __init__(self, folder: str | os.PathLike | None = None, limits: Limits | None = None) -> None:
        self._root = None if folder is None else Path(folder).resolve()
        self.limits = limits or Limits()
        self._specs: dict[str, ServedSpec] = {}
        self._names: dict[str, str] = {}
        self._doses: dict[str, float] = {}
        if self._root is not None:
            (self._root / _NAMES).mkdir(parents=True, exist_ok=True)
            for file in sorted(self._root.glob(f"*{_SUFFIX}")):
                self._read(file.name.removesuffix(_SUFFIX))
            for file in sorted((self._root / _NAMES).iterdir()):
                if file.is_file():
                    self._read_name(check_name(file.name))

    def __len__(self) -> int:
        """Specs, whatever they are called."""
        return len(self._specs)

    def items(self) -> list[tuple[str, ServedSpec]]:
        """(id, spec) of all."""
        return list(self._specs.items())

    def names(self) -> dict[str, str]:
        """The id that each name means."""
        return dict(self._names)

    def add(self, spec: ServedSpec, name: str | None = None) -> str:
        """Keep a spec, and a name that from now on means it; returns the id.

        Raises:
            ValueError: a name that is none, or that is the id of another spec.
        """
        spec_id = spec.id
        if name is not None and check_name(name) in self._specs and name != spec_id:
            raise ValueError(f"{name!r} is the id of another spec")
        self._specs[spec_id] = spec
        if self._root is not None:
            file = self._root / (spec_id + _SUFFIX)
            if not file.exists():
                write_whole(file, spec_files.to_bytes(spec))
        if name is not None:
            self._names[name] = spec_id
            if self._root is not None and self._written_id(name) != spec_id:
                write_whole(self._root / _NAMES / name, spec_id.encode())
        return spec_id

    def remove(self, spec_id: str) -> None:
        """Drop a spec and its names. Raises KeyError for an unknown id."""
        if spec_id not in self._specs:
            raise KeyError(f"no spec {spec_id} is known")
        names = [name for name, each in self._names.items() if each == spec_id]
        del self._specs[spec_id]
        for name in names:
            del self._names[name]
        if self._root is not None:
            for file in [*(self._root / _NAMES / name for name in names), self._root / (spec_id + _SUFFIX)]:
                file.unlink(missing_ok=True)

    def discard(self, spec_id: str) -> None:
        """Drop a spec if it is there."""
        if spec_id in self._specs:
            self.remove(spec_id)

    def find(self, name: str) -> tuple[str, ServedSpec] | None:
        """(id, spec) of an id or a name; what another process put into the folder meanwhile is found too.

        Raises:
            ValueError: not a name; a damaged file.
        """
        check_name(name)
        if name not in self._specs and name not in self._names and self._root is not None:
            if (self._root / (name + _SUFFIX)).is_file():
                self._read(name)
            elif (self._root / _NAMES / name).is_file():
                self._read_name(name)
        spec_id = name if name in self._specs else self._names.get(name)
        return None if spec_id is None or spec_id not in self._specs else (spec_id, self._specs[spec_id])

    def dose(self, spec_id: str) -> float:
        """A known spec's dose at its own strength; 0 where doses are not limited."""
        if spec_id not in self._doses:
            self._doses[spec_id] = self.limits.dose_of(self._specs[spec_id])
        return self._doses[spec_id]

    def _read(self, spec_id: str) -> None:
        file = self._inside(spec_id + _SUFFIX)
        self.limits.check_size(file.stat().st_size, str(file))
        spec = spec_files.from_bytes(file.read_bytes(), str(file), self.limits)
        if spec.id != spec_id:
            raise ValueError(f"{file} holds the spec {spec.id}; files are named by what they hold")
        self._specs[spec_id] = spec

    def _read_name(self, name: str) -> None:
        spec_id = self._written_id(name)
        if spec_id not in self._specs:
            if not (self._root / (check_name(spec_id) + _SUFFIX)).is_file():  # type: ignore[operator]
                raise ValueError(f"the name {name} means {spec_id}, of which there is no file in {self._root}")
            self._read(spec_id)
        self._names[name] = spec_id

    def _written_id(self, name: str) -> str:
        """What a name means in the folder, where another process may have written it; nothing if it is not there."""
        file = self._inside(_NAMES, name)
        return file.read_text()[:64].strip() if file.is_file() else ""

    def _inside(self, *parts: str) -> Path:
        """A file of the folder. Raises ValueError where a link leads out of it."""
        file = Path(self._root, *parts).resolve()  # type: ignore[arg-type]
        if self._root not in file.parents:
            raise ValueError(f"{'/'.join(parts)} leads out of {self._root}")
        return file
