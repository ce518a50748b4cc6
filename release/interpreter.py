"""The Pythons that a release is built and tried with, one a torch minor."""

from dataclasses import dataclass
from pathlib import Path

from release.commands import run

FACTS = "import sysconfig, torch; print(torch.__version__, sysconfig.get_path('purelib'))"


@dataclass(frozen=True)
class Interpreter:
    """A Python with torch and everything else that sparsesteer needs."""

    python: Path
    torch: str  # its version, "2.13.0+cpu"
    libraries: Path

    @classmethod
    def at(cls, python: Path) -> "Interpreter":
        """The interpreter behind a path. Raises CommandFailed if it has no torch."""
        torch, libraries = run(python, "-c", FACTS, cwd=python.parent).split(maxsplit=1)
        return cls(python, torch, Path(libraries.strip()))

    @property
    def minor(self) -> str:
        """Torch's minor version, "2.13"."""
        return minor(self.torch)


def minor(version: str) -> str:
    """The minor version of a version: "2.13" of "2.13.0+cpu"."""
    return ".".join(version.split("+")[0].split(".")[:2])
