"""A file to which a line of JSON is added after each step, so that nothing is lost where a run is interrupted."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsesteer.storage import parse_json


@dataclass
class JsonLines:
    """The objects in a file, in order."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def opened(cls, path: str | os.PathLike) -> "JsonLines":
        """With what is in the file already; a last line that was cut off is removed.

        Raises:
            ValueError: another line that is no JSON object.
        """
        path = Path(path)
        lines = path.read_text().split("\n") if path.exists() else [""]
        if lines[-1]:
            path.write_text("\n".join([*lines[:-1], ""]))
        return cls(path, [parse_json(line, f"{path}, line {n}") for n, line in enumerate(lines[:-1], 1)])

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep it and write it."""
        with self.path.open("a") as file:
            file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
        self.rows.append(dict(row))
