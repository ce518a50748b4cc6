"""Arrays of numpy's .npz archives: read in place where they are stored as they are, unpacked where they are not."""

import math
import re
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from sparsesteer.loaders.containers.zip_file import UNREADABLE, Member, members
from sparsesteer.storage import StoredTensor, row_major_strides
from sparsesteer.weights import Matrix

_DTYPES = {
    "<f8": torch.float64,
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<i8": torch.int64,
    "<i4": torch.int32,
    "<i2": torch.int16,
    "|i1": torch.int8,
    "|u1": torch.uint8,
    "|b1": torch.bool,
}
_VERSION = (1, 0)  # later ones are for headers of structured arrays
_UNREADABLE = (*UNREADABLE, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError, zlib.error)
_PLAIN_NAME = re.compile(r"[\w.-]+\.npy")
# weights hardly shrink when they are packed; what unpacks to far more than the file holds is no SAE
_UNPACKED_AT_MOST, _UNPACKED_TIMES = 64 << 20, 20


def open_npz(path: Path) -> dict[str, Matrix]:
    """The arrays of an archive by name. Object arrays, which numpy would unpickle, are refused.

    Raises:
        ValueError: no npz archive, a damaged one, an array of another dtype than numbers, a header that disagrees
            with the bytes that follow it, packed arrays of far more bytes than the file has.
    """
    found = members(path)
    unpacked = sum(member.size for member in found.values() if not member.stored)
    most = max(_UNPACKED_AT_MOST, _UNPACKED_TIMES * path.stat().st_size)
    if unpacked > most:
        raise ValueError(f"{path}: its arrays say they unpack to {unpacked} bytes, more than the {most} allowed")
    arrays: dict[str, Matrix] = {}
    for name, member in found.items():
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{path}: member {name!r} is no array; an .npz archive holds NAME.npy files")
        try:
            arrays[name.removesuffix(".npy")] = _array(path, member)
        except _UNREADABLE as error:
            raise ValueError(f"{path}: {name} is not readable as an array: {error}") from error
    return arrays


def _array(path: Path, member: Member) -> Matrix:
    if member.stored:
        with open(path, "rb") as file:
            file.seek(member.offset)
            shape, strides, dtype = _header(file, member)
            return StoredTensor(path, file.tell(), shape, dtype, strides)
    with zipfile.ZipFile(path) as archive, archive.open(member.info) as file:
        shape, strides, dtype = _header(file, member)
        data = bytearray(file.read())  # never more than the member says it has
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"it ends after {len(data)} bytes")
    return torch.frombuffer(data, dtype=dtype).as_strided(shape, strides)


def _header(file: IO[bytes], member: Member) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    """(shape, strides, dtype) of the array that begins at ``file``'s position, which is left at its first number."""
    start = file.tell()
    version = npy.read_magic(file)
    if version != _VERSION:
        raise ValueError(f"its header has version {version}, that of plain numbers is {_VERSION}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 2, which wrote 1L for 1
        shape, fortran, numpy_dtype = npy.read_array_header_1_0(file)
    dtype = _DTYPES.get(np.dtype(numpy_dtype).str)
    if dtype is None:
        raise ValueError(f"its dtype {numpy_dtype} is not read; floating point numbers are")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its shape {shape} is not one of whole numbers")
    if file.tell() - start + math.prod(shape) * dtype.itemsize != member.size:
        raise ValueError(f"an array of shape {list(shape)} and {dtype} does not take {member.size} bytes")
    strides = row_major_strides(shape[::-1])[::-1] if fortran else row_major_strides(shape)
    return shape, strides, dtype
