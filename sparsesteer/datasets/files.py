"""Conflicts as JSONL: one mapping a line."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sparsesteer.files import write_whole
from sparsesteer.storage import parse_json

FIELDS = ("question", "sub_context", "sub_answer", "org_answer")  # that every conflict has


def read_conflicts(path: str | os.PathLike) -> list[dict]:
    """The mappings of a JSONL file, with other fields than NQ-Swap's left in them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no JSON object or lacks a field; no lines.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        example = parse_json(line, f"{path}, line {number}")
        absent = [name for name in FIELDS if name not in example]
        if absent:
            raise ValueError(f"{path}, line {number} has no {', '.join(absent)}; a conflict has {', '.join(FIELDS)}")
        found.append(example)
    if not found:
        raise ValueError(f"{path} holds no conflicts")
    return found


def write_conflicts(path: str | os.PathLike, examples: Iterable[Mapping]) -> Path:
    """Write what ``read_conflicts`` reads; returns the path."""
    lines = (json.dumps(dict(example), ensure_ascii=False) + "\n" for example in examples)
    return write_whole(path, "".join(lines).encode())
