"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_whole(path: str | os.PathLike, data: bytes) -> Path:
    """Write a file beside its place and move it there, so that a reader never sees half of it; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a folder, because a file made by tempfile would keep permissions of its own
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return path
