"""Tries an artefact: installed into a new environment outside the tree, used through its backends, and uninstalled."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from release.commands import CommandFailed, run
from release.interpreter import Interpreter

STEER_ONCE = Path(__file__).with_name("steer_once.py").read_text()
NOT_BUILT = "it was not built (SPARSESTEER_BUILD=none)"
LINK = "libraries.pth"


@dataclass(frozen=True)
class Environment:
    """A new virtual environment that sees an interpreter's libraries, but of sparsesteer only what it installs."""

    folder: Path
    interpreter: Interpreter

    @classmethod
    def new(cls, folder: Path, interpreter: Interpreter) -> "Environment":
        run(interpreter.python, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        environment = cls(folder, interpreter)
        (environment.site / LINK).write_text(str(interpreter.libraries))
        return environment

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def site(self) -> Path:
        (site,) = self.folder.glob("lib/python*/site-packages")
        return site

    def pip(self, *words: object, **variables: str) -> str:
        return run(sys.executable, "-m", "pip", "--python", self.python, *words, cwd=self.folder, **variables)

    def install(self, artefact: Path, *options: str, **variables: str) -> None:
        self.pip("install", "--no-index", "--no-build-isolation", *options, artefact, **variables)

    def steer(self, backend: str, **variables: str) -> None:
        run(self.python, "-c", STEER_ONCE, backend, cwd=self.folder, **variables)

    def info(self) -> dict:
        return json.loads(run(self.folder / "bin/sparsesteer", "info", "--json", cwd=self.folder))

    def uninstall(self) -> None:
        self.pip("uninstall", "--yes", "sparsesteer")
        left = [path.name for path in self.site.iterdir() if path.name != LINK]
        left += [path.name for path in (self.folder / "bin").glob("sparsesteer*")]
        if left:
            raise TrialFailed(f"uninstalling left {', '.join(sorted(left))}")


class TrialFailed(RuntimeError):
    """An artefact did something else than it must."""


def expect(what: str, found: object, wanted: object) -> None:
    """Raises TrialFailed if the two differ."""
    if found != wanted:
        raise TrialFailed(f"{what}: {found!r}, expected {wanted!r}")


def try_pure(artefact: Path, version: str, environment: Environment) -> str:
    """Try the pure wheel, or the sdist without compilation; returns what was shown."""
    environment.install(artefact, SPARSESTEER_BUILD="none")
    facts = environment.info()
    expect("version", facts["sparsesteer"], version)
    expect("native backend", facts["backends"]["native"], NOT_BUILT)
    environment.steer("reference")
    environment.steer("triton", TRITON_INTERPRET="1")
    environment.uninstall()
    return f"torch {environment.interpreter.torch}: reference, triton (interpreted)"


def try_native(wheel: Path, version: str, environment: Environment) -> str:
    """Try a native wheel beside the torch minor that it was built for."""
    environment.install(wheel)
    facts = environment.info()
    expect("version", facts["sparsesteer"], version)
    expect("native backend", facts["backends"]["native"], "available")
    environment.steer("native")
    environment.steer("auto")
    environment.uninstall()
    return f"torch {environment.interpreter.torch}: native"


def try_refused(wheel: Path, built_with: str, environment: Environment) -> str:
    """Try a native wheel beside another torch minor: pip refuses it; forced in, it says why and does without."""
    try:
        environment.install(wheel)
    except CommandFailed as refusal:
        if "torch==" not in str(refusal):
            raise TrialFailed(f"pip refuses for another reason than torch: {refusal}") from refusal
    else:
        raise TrialFailed(f"pip installs {wheel.name} beside torch {environment.interpreter.torch}")
    environment.install(wheel, "--no-deps")
    reason = environment.info()["backends"]["native"]
    expected = f"built with torch {built_with}, running torch {environment.interpreter.torch}"
    expect("reason", reason[: len(expected)], expected)
    environment.steer("auto")
    try:
        environment.steer("native")
    except CommandFailed as refusal:
        expect("a named backend's error", "RuntimeError" in str(refusal) and expected in str(refusal), True)
    else:
        raise TrialFailed(f"backend='native' runs beside torch {environment.interpreter.torch}")
    environment.uninstall()
    return f"torch {environment.interpreter.torch}: refused with the reason"
