"""Tensors of files read in part: a few rows or columns of a matrix without the rest in memory; safetensors files."""

import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sparsesteer.plain_json import parse_json

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
    """A tensor in a file; nothing is read before it is asked for.

    Along one of its axes neighbours lie side by side in the file: rows of a matrix stored row by row are read in
    place, and so are columns of one stored column by column (``T`` of the other). ``factor`` multiplies all that is
    read, in fp32 at least.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    file_dtype: torch.dtype
    strides: tuple[int, ...]  # in elements, as torch counts them
    factor: float = 1.0

    @classmethod
    def row_major(cls, path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> "StoredTensor":
        """A tensor whose last axis runs fastest and which has no gaps."""
        return cls(path, offset, shape, dtype, row_major_strides(shape))

    @property
    def dtype(self) -> torch.dtype:
        """Of what is read."""
        return self.file_dtype if self.factor == 1 else torch.promote_types(self.file_dtype, torch.float32)

    @property
    def span(self) -> int:
        """Elements from its first to its last one in the file."""
        return _span(self.shape, self.strides)

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.span * self.file_dtype.itemsize

    @property
    def T(self) -> "StoredTensor":
        """The matrix with rows and columns exchanged; nothing moves."""
        return replace(self, shape=self.shape[::-1], strides=self.strides[::-1])

    @property
    def rows_lie_together(self) -> bool:
        """True for a matrix stored row by row, False for one stored column by column."""
        return self.strides[1] == 1 or self.shape[1] == 1

    def scaled(self, factor: float) -> "StoredTensor":
        """The tensor times a number."""
        return replace(self, factor=self.factor * factor)

    def load(self) -> Tensor:
        """The whole tensor."""
        elements = torch.empty(self.span, dtype=self.file_dtype)
        with open(self.path, "rb", buffering=0) as file:
            self._read_into(elements, file.fileno(), 0)
        return self._scaled(elements.as_strided(self.shape, self.strides))

    def rows(self, indices: Tensor) -> Tensor:
        """Rows ``indices`` [M] of a matrix, [M, width]."""
        self._check_rows(indices)
        return self._along(indices) if self.rows_lie_together else self.T._across(indices)

    def columns(self, indices: Tensor) -> Tensor:
        """Columns ``indices`` [M] of a matrix as rows, [M, height]."""
        return self.T.rows(indices)

    def _check_rows(self, indices: Tensor) -> None:
        height = self.shape[0]
        if bool(((indices < 0) | (indices >= height)).any()):
            raise IndexError(f"{self.path}: rows {indices.tolist()} of a matrix of {height} rows")

    def _along(self, indices: Tensor) -> Tensor:
        """Rows of a matrix whose rows lie in one piece each."""
        picked = torch.empty(len(indices), self.shape[1], dtype=self.file_dtype)
        with open(self.path, "rb", buffering=0) as file:
            for i, row in enumerate(indices.tolist()):
                self._read_into(picked[i], file.fileno(), row * self.strides[0])
        return self._scaled(picked)

    def _across(self, indices: Tensor) -> Tensor:
        """Columns of a matrix whose rows lie in one piece each; the file passes through one band of memory."""
        height, width = self.shape
        stride = self.strides[0]
        picked = torch.empty(height, len(indices), dtype=self.file_dtype)
        band_rows = max(1, min(height, BAND_BYTES // (stride * self.file_dtype.itemsize)))
        band = torch.empty(band_rows * stride, dtype=self.file_dtype)
        with open(self.path, "rb", buffering=0) as file:
            for start in range(0, height, band_rows):
                count = min(band_rows, height - start)
                self._read_into(band[: (count - 1) * stride + width], file.fileno(), start * stride)
                part = band[: count * stride].view(count, stride)[:, :width]
                torch.index_select(part, 1, indices, out=picked[start : start + count])
        return self._scaled(picked.T.contiguous())

    def _scaled(self, tensor: Tensor) -> Tensor:
        return tensor if self.factor == 1 else tensor.to(self.dtype) * self.factor

    def _read_into(self, tensor: Tensor, descriptor: int, first: int) -> None:
        """Fill a contiguous tensor with the elements from ``first`` on."""
        target = tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
        position = self.offset + first * self.file_dtype.itemsize
        while len(target):
            n = os.preadv(descriptor, [target], position)
            if n == 0:
                raise ValueError(f"{self.path} ends early: truncated, or changed while it was read")
            target, position = target[n:], position + n


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps whose last axis runs fastest."""
    return tuple(math.prod(max(1, n) for n in shape[axis + 1 :]) for axis in range(len(shape)))


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


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
    return StoredTensor.row_major(path, data_start + begin, shape, dtype)


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
