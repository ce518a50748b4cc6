"""Builds what a release is made of: the sdist, and wheels out of the sdist alone."""

import sys
import tarfile
import zipfile
from pathlib import Path
from typing import IO

from release.commands import run
from release.interpreter import Interpreter
from release.pin import pin, platform_checked

TORCH_LIBRARIES = ("libtorch", "libc10", "libgomp")


def build_sdist(source: Path, folder: Path) -> Path:
    """Archive a source tree into ``folder``."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def build_wheel(sdist: Path, python: Path, folder: Path, choice: str) -> Path:
    """The wheel that ``python`` makes of an sdist with SPARSESTEER_BUILD=``choice``, in ``folder``."""
    command = (python, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index")
    run(*command, "--wheel-dir", folder, sdist, cwd=folder, SPARSESTEER_BUILD=choice)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_native_wheel(sdist: Path, interpreter: Interpreter, folder: Path) -> Path:
    """The wheel for one torch minor and one CPython."""
    rooms = [folder / name for name in ("built", "pinned", "checked")]
    for room in rooms:
        room.mkdir(parents=True)
    wheel = build_wheel(sdist, interpreter.python, rooms[0], "cpu")
    return platform_checked(pin(wheel, interpreter.minor, rooms[1]), rooms[2])


def faults(artefact: Path) -> list[str]:
    """What must not be in a file that goes out; empty if all is well."""
    if artefact.suffix == ".gz":
        return _faults_of_sdist(artefact)
    return _faults_of_wheel(artefact)


def _faults_of_sdist(sdist: Path) -> list[str]:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    links = [f"{member.name} is a link" for member in members if member.islnk() or member.issym()]
    made = (".so", "_build_result.py")
    return links + [f"{member.name} was made by a build" for member in members if member.name.endswith(made)]


def _faults_of_wheel(wheel: Path) -> list[str]:
    found = []
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in Path(name).name]
        wanted = 0 if wheel.name.endswith("-none-any.whl") else 1
        if len(libraries) != wanted:
            found.append(f"{len(libraries)} shared libraries, expected {wanted}: {libraries}")
        for name in libraries:
            if Path(name).name.startswith(TORCH_LIBRARIES):
                found.append(f"{name} belongs to torch")
            with archive.open(name) as library:
                if _has_symbols(library):
                    found.append(f"{name} is not stripped")
    return found


def _has_symbols(library: IO[bytes]) -> bool:
    from elftools.elf.elffile import ELFFile  # comes with auditwheel, on Linux only

    sections = [section.name for section in ELFFile(library).iter_sections()]
    return any(section == ".symtab" or section.startswith(".debug") for section in sections)
