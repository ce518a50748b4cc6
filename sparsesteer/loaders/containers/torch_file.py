"""Tensors of the files that ``torch.save`` writes, each read in place: their pickle is never run."""

import math
from pathlib import Path

from sparsesteer.loaders.containers.pickles import PickledTensor, read_pickle
from sparsesteer.loaders.containers.zip_file import Member, members
from sparsesteer.storage import StoredTensor, row_major_strides

_LARGEST_PICKLE = 4 << 20
_BEFORE_TORCH_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a number that begins files of the older format


def open_torch_file(path: Path) -> dict[str, object]:
    """What the file's dictionary holds: tensors as ``StoredTensor``, numbers and texts as they are.

    Raises:
        ValueError: another format (also torch.save's before 1.6), a damaged file, a pickle that would call or build
            anything but tensors, a tensor that its storage cannot hold.
    """
    with open(path, "rb") as file:
        if file.read(len(_BEFORE_TORCH_1_6)) == _BEFORE_TORCH_1_6:
            raise ValueError(f"{path} is of the format that torch.save wrote before 1.6; load it there and save again")
    found = members(path)
    roots = [name.removesuffix("data.pkl") for name in found if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"{path} is a zip archive, but torch.save did not write it: there is no data.pkl")
    root = roots[0]
    if not all(name.startswith(root) for name in found):
        raise ValueError(f"{path}: some of its members lie beside the folder {root!r} of its pickle")
    packed = [name for name, member in found.items() if not member.stored]
    if packed:
        raise ValueError(f"{path}: member {packed[0]!r} is packed; torch.save packs nothing")
    if f"{root}byteorder" in found and _bytes(path, found[f"{root}byteorder"]) != b"little":
        raise ValueError(f"{path} was written on a big-endian machine, which is not read")
    try:
        contents = read_pickle(_bytes(path, found[f"{root}data.pkl"]))
        return {
            str(name): _stored(path, found, root, value) if isinstance(value, PickledTensor) else value
            for name, value in contents.items()
        }
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _bytes(path: Path, member: Member) -> bytes:
    if member.size > _LARGEST_PICKLE:
        raise ValueError(f"{path}: {member.name!r} has {member.size} bytes, too many for a dictionary of tensors")
    with open(path, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _stored(path: Path, found: dict[str, Member], root: str, tensor: PickledTensor) -> StoredTensor:
    storage = tensor.storage
    member = found.get(f"{root}data/{storage.key}")
    size = storage.dtype.itemsize
    if member is None or member.size != storage.count * size:
        raise ValueError(f"a storage of {storage.count} numbers is not in the archive, or has another size there")
    plain = row_major_strides(tensor.shape)
    # the stride of an axis of length 1 says nothing, and may be anything
    strides = tuple(own if n > 1 else usual for n, own, usual in zip(tensor.shape, tensor.strides, plain, strict=True))
    stored = StoredTensor(path, member.offset + tensor.offset * size, tensor.shape, storage.dtype, strides)
    if tensor.offset + stored.span > storage.count:
        raise ValueError(
            f"a tensor of shape {list(tensor.shape)} reaches beyond its storage of {storage.count} numbers"
        )
    if math.prod(tensor.shape) > stored.span:
        raise ValueError(f"a tensor of shape {list(tensor.shape)} repeats its numbers; save a copy, tensor.clone()")
    if len(strides) == 2 and 1 not in strides and 1 not in tensor.shape:
        raise ValueError(f"a matrix of shape {list(tensor.shape)} has gaps in both directions; save a copy of it")
    return stored
