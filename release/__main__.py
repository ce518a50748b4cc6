"""Builds every artefact of a release, tries each, and puts those that passed into dist/: python -m release.

`make release` runs it. The artefacts are of the last commit. Each further --python with another torch gives a native
wheel more, and every native wheel is also tried beside the torches that it was not built for.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from release.artefacts import build_native_wheel, build_sdist, build_wheel, faults
from release.commands import CommandFailed, run
from release.interpreter import Interpreter
from release.notes import changelog_faults, released
from release.trial import Environment, TrialFailed, try_native, try_pure, try_refused

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the command line; 1 if nothing was put into dist/."""
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    parser.add_argument("--python", type=Path, action="append", default=[], help="a Python with another torch")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the artefacts go (dist/)")
    options = parser.parse_args()
    try:
        interpreters = different([Interpreter.at(Path(sys.executable)), *map(Interpreter.at, absolute(options.python))])
        with tempfile.TemporaryDirectory(prefix="sparsesteer-release-") as scratch:
            publish(tried(Path(scratch), interpreters), options.dist)
    except (CommandFailed, TrialFailed, ValueError) as error:
        print(f"No release: {error}", file=sys.stderr)
        return 1
    return 0


def absolute(paths: list[Path]) -> list[Path]:
    """Paths without dots; links stay, because a virtual environment's python is one."""
    return [Path(os.path.abspath(path)) for path in paths]


def different(interpreters: list[Interpreter]) -> list[Interpreter]:
    """The same interpreters. Raises ValueError if two have one torch minor, whose wheels would have one name."""
    minors = [interpreter.minor for interpreter in interpreters]
    if len(set(minors)) < len(minors):
        raise ValueError(f"two Pythons with the same minor version of torch: {', '.join(minors)}")
    return interpreters


def tried(scratch: Path, interpreters: list[Interpreter]) -> list[Path]:
    """Build and try everything in a folder outside the tree; the artefacts that may go out."""
    source, made = scratch / "source", scratch / "made"
    for folder in (source, made):
        folder.mkdir()
    export(ROOT, source)
    version, changelog = version_of(source), (source / "CHANGELOG.md").read_text()
    found = changelog_faults(changelog, version)
    if found:
        raise ValueError(f"CHANGELOG.md: {'; '.join(found)}")
    dated = version in released(changelog)
    print(f"sparsesteer {version}{'' if dated else ', which has no date in CHANGELOG.md yet: a trial run'}")
    sdist = build_sdist(source, made)
    pure = build_wheel(sdist, interpreters[0].python, made, "none")
    artefacts = [sdist, pure]
    for artefact in artefacts:
        report(artefact, [try_pure(artefact, version, new_environment(scratch, interpreters[0]))])
    for interpreter in interpreters:
        native = build_native_wheel(sdist, interpreter, scratch / f"torch-{interpreter.minor}")
        artefacts.append(native)
        shown = [
            try_native(native, version, new_environment(scratch, other))
            if other == interpreter
            else try_refused(native, interpreter.torch, new_environment(scratch, other))
            for other in interpreters
        ]
        report(native, shown)
    return artefacts


def export(root: Path, source: Path) -> None:
    """Write the last commit's files. Raises ValueError if the tree holds changes that are not committed."""
    changed = run("git", "status", "--porcelain", cwd=root).splitlines()
    if changed:
        raise ValueError(f"a release is of a commit, but {len(changed)} files differ from it, first {changed[0]!r}")
    archive = source.with_suffix(".tar")
    run("git", "archive", "--format=tar", "--output", archive, "HEAD", cwd=root)
    shutil.unpack_archive(archive, source, filter="fully_trusted")  # the tree's own links stay links


def version_of(source: Path) -> str:
    """The one place of the version is sparsesteer/__init__.py."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', (source / "sparsesteer/__init__.py").read_text(), re.MULTILINE)
    return version


def new_environment(scratch: Path, interpreter: Interpreter) -> Environment:
    """An environment for one trial."""
    return Environment.new(Path(tempfile.mkdtemp(prefix="trial-", dir=scratch)) / "env", interpreter)


def report(artefact: Path, shown: list[str]) -> None:
    """Print an artefact that passed. Raises TrialFailed if it holds what must not go out."""
    found = faults(artefact)
    if found:
        raise TrialFailed(f"{artefact.name}: {'; '.join(found)}")
    print(f"{artefact.name}  {artefact.stat().st_size / 1e6:.1f} MB")
    for line in shown:
        print(f"    {line}")


def publish(artefacts: list[Path], dist: Path) -> None:
    """Copy all of them into ``dist`` under other names, then rename: a file there is complete."""
    dist.mkdir(parents=True, exist_ok=True)
    partial = [dist / f".{artefact.name}.partial" for artefact in artefacts]
    try:
        for artefact, copy in zip(artefacts, partial, strict=True):
            shutil.copyfile(artefact, copy)
        for artefact, copy in zip(artefacts, partial, strict=True):
            copy.replace(dist / artefact.name)
    finally:
        for copy in partial:
            copy.unlink(missing_ok=True)
    print(f"in {dist}: {len(artefacts)} files")


if __name__ == "__main__":
    sys.exit(main())
