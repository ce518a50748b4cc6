"""Tensors of safetensors files read in part: a few rows or columns of a matrix without the rest in memory."""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

BAND_BYTES = 16 << 20
_MAX_HEADER = 100 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; nothing is read before it is asked for. Row-major, as safetensors stores it."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Tensor:
        """The whole tensor."""
        return self._read(0, math.prod(self.shape)).view(self.shape)

    def rows(self, indices: Tensor) -> Tensor:
        """Rows ``indices`` [M] of a matrix, [M, width]."""
        height, width = self.shape
        if bool(((indices < 0) | (indices >= height)).any()):
            raise IndexError(f"{self.path}: rows {indices.tolist()} of a matrix of {height} rows")
        picked = torch.empty(len(indices), width, dtype=self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            for i, row in enumerate(indices.tolist()):
                self._read_into(picked[i], file.fileno(), row * width)
        return picked

    def columns(self, indices: Tensor) -> Tensor:
        """Columns ``indices`` [M] of a matrix as rows, [M, height]; the file passes through one band of memory."""
        height, width = self.shape
        picked = torch.empty(height, len(indices), dtype=self.dtype)
        band_rows = max(1, min(height, BAND_BYTES // (width * self.dtype.itemsize)))
        band = torch.empty(band_rows, width, dtype=self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            for start in range(0, height, band_rows):
                part = band[: min(band_rows, height - start)]
                self._read_into(part, file.fileno(), start * width)
                torch.index_select(part, 1, indices, out=picked[start : start + len(part)])
        return picked.T.contiguous()

    def _read(self, first: int, count: int) -> Tensor:
        tensor = torch.empty(count, dtype=self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            self._read_into(tensor, file.fileno(), first)
        return tensor

    def _read_into(self, tensor: Tensor, descriptor: int, first: int) -> None:
        """Fill a contiguous tensor with the elements from ``first`` on."""
        target = tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
        position = self.offset + first * self.dtype.itemsize
        while len(target):
            n = os.preadv(descriptor, [target], position)
            if n == 0:
                raise ValueError(f"{self.path} ends early: truncated, or changed while it was read")
            target, position = target[n:], position + n


def open_safetensors(path: str | os.PathLike) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: not a safetensors file, truncated, or a header that disagrees with itself.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError(f"{path} is not a safetensors file, or is truncated ({size} bytes)")
        header = parse_json(file.read(length), f"the header of {path}")
    header.pop("__metadata__", None)
    tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def parse_json(text: str | bytes, where: str) -> dict:
    """A JSON object whose names are all different. Raises ValueError for anything else."""
    try:
        parsed = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable as JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{where} should be a JSON object, got {type(parsed).__name__}")
    return parsed


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name stands in it twice")
    return names


def _stored(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    try:
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])  # type: ignore[index]
        begin, end = entry["data_offsets"]  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header entry of {name} is not understood ({error!r})") from error
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"{path}: the header entry of {name} has a shape or offset that is not a whole number")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {name} of shape {list(shape)} and {dtype} does not take {end - begin} bytes")
    return StoredTensor(path, data_start + begin, shape, dtype)


def _check_layout(path: Path, tensors: dict[str, StoredTensor], data_start: int, size: int) -> None:
    """Raise ValueError unless the tensors fill the file one after the other, as the format demands."""
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != position:
            raise ValueError(f"{path}: {name} begins at byte {tensor.offset}, the tensor before it ends at {position}")
        position += tensor.nbytes
    if position > size:
        raise ValueError(f"{path} is truncated: its tensors end at byte {position}, the file at {size}")
    if position < size:
        raise ValueError(f"{path}: {size - position} bytes follow the last tensor; the file may be damaged")
