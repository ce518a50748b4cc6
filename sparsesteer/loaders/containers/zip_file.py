"""The members of a zip archive and where their bytes lie, checked against the file before anything is read."""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 1
# what zipfile raises for archives that are damaged or of a kind it does not read
UNREADABLE = (zipfile.BadZipFile, NotImplementedError, EOFError, OverflowError, ValueError, struct.error, OSError)


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    info: zipfile.ZipInfo
    offset: int  # of its first byte in the archive

    @property
    def name(self) -> str:
        """Its name in the archive."""
        return self.info.filename

    @property
    def size(self) -> int:
        """Its bytes, unpacked."""
        return self.info.file_size

    @property
    def stored(self) -> bool:
        """True if its bytes lie in the archive as they are."""
        return self.info.compress_type == zipfile.ZIP_STORED


def members(path: Path) -> dict[str, Member]:
    """The members of an archive by name.

    Raises:
        ValueError: no zip archive, a damaged one, members that overlap, share a name, or are packed or encrypted in a
            way that no library writes tensors in.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            end = archive.start_dir
            found = [Member(info, _data_offset(file, info, path)) for info in archive.infolist()]
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable zip archive: {error}") from error
    position = 0
    for member in sorted(found, key=lambda member: member.info.header_offset):
        _check(member, path)
        if member.info.header_offset < position:
            raise ValueError(f"{path}: member {member.name!r} overlaps the one before it")
        position = member.offset + member.info.compress_size
    if position > end:
        raise ValueError(f"{path}: the members end at byte {position}, behind the archive's directory at {end}")
    by_name = {member.name: member for member in found}
    if len(by_name) != len(found):
        raise ValueError(f"{path}: two members of the archive share a name")
    return by_name


def _data_offset(file, info: zipfile.ZipInfo, path: Path) -> int:
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
        raise ValueError(f"member {info.filename!r} is not where the archive's directory says")
    name_length, extra_length = _LOCAL_HEADER.unpack(header)[-2:]
    name = file.read(name_length)
    if name != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
        raise ValueError(f"member {info.filename!r} has another name in its own header")
    return info.header_offset + _LOCAL_HEADER.size + name_length + extra_length


def _check(member: Member, path: Path) -> None:
    info = member.info
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{path}: member {member.name!r} is encrypted, or packed by a method that is not read")
    if member.stored and info.compress_size != info.file_size:
        raise ValueError(f"{path}: member {member.name!r} is not packed, yet its two sizes differ")
    if ".." in member.name.replace("\\", "/").split("/") or member.name.startswith(("/", "\\")):
        raise ValueError(f"{path}: member {member.name!r} points outside of the archive")
