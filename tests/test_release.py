"""Releases: a native wheel names its torch, nothing goes out that must not, and dist/ holds complete files."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # release/ belongs to the repository, not to the package

from release import __main__ as command  # noqa: E402
from release.artefacts import build_native_wheel, build_sdist, faults  # noqa: E402
from release.commands import CommandFailed, run  # noqa: E402
from release.interpreter import Interpreter, minor  # noqa: E402
from release.pin import pin, pinned_metadata  # noqa: E402
from release.trial import Environment, TrialFailed, expect, try_refused  # noqa: E402

METADATA = """Metadata-Version: 2.4
Name: sparsesteer
Version: 0.1.0
Requires-Dist: torch>=2.9
Requires-Dist: numpy>=1.26
Requires-Dist: torchvision; extra == "demo"

# sparsesteer

Version: 0.1.0
Requires-Dist: torch>=2.9
"""


def test_metadata_name_one_torch_minor_and_the_description_stays():
    version, text = pinned_metadata(METADATA, "2.13")
    header, description = text.split("\n\n", 1)
    assert version == "0.1.0+pt213"
    assert header.splitlines()[2:] == [
        "Version: 0.1.0+pt213",
        "Requires-Dist: torch==2.13.*",
        "Requires-Dist: numpy>=1.26",
        'Requires-Dist: torchvision; extra == "demo"',
    ]
    assert description == METADATA.split("\n\n", 1)[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [("torch>=2.9\nReq", "tensorflow\nReq"), ("0.1.0\nReq", "0.1.0+local\nReq")],
    ids=["no torch", "local version"],
)
def test_metadata_of_another_form_are_refused(old, new):
    with pytest.raises(ValueError, match="expected one of each"):
        pinned_metadata(METADATA.replace(old, new, 1), "2.13")


@pytest.fixture
def small_wheel(tmp_path) -> Path:
    """A wheel of one module that requires torch as ours does."""
    tree = tmp_path / "tree"
    info = tree / "sparsesteer-0.1.0.dist-info"
    info.mkdir(parents=True)
    (tree / "sparsesteer.py").write_text("")
    (info / "METADATA").write_text(METADATA.replace("Requires-Dist: numpy>=1.26\n", ""))
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", tmp_path, tree, cwd=tmp_path)
    return tmp_path / "sparsesteer-0.1.0-py3-none-any.whl"


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment.new(tmp_path / "env", Interpreter.at(Path(sys.executable)))


def pinned(wheel: Path, torch_minor: str) -> Path:
    folder = wheel.parent / "pinned"
    folder.mkdir()
    return pin(wheel, torch_minor, folder)


def test_a_pinned_wheel_installs_beside_its_torch(small_wheel, environment):
    wheel = pinned(small_wheel, environment.interpreter.minor)
    version = f"0.1.0+pt{environment.interpreter.minor.replace('.', '')}"
    assert wheel.name == f"sparsesteer-{version}-py3-none-any.whl"
    environment.install(wheel)
    installed = "from importlib.metadata import version; print(version('sparsesteer'))"
    assert run(environment.python, "-c", installed, cwd=wheel.parent).strip() == version
    environment.uninstall()


def test_pip_refuses_a_pinned_wheel_beside_another_torch(small_wheel, environment):
    with pytest.raises(CommandFailed, match=r"torch==1\.4\.\*"):
        environment.install(pinned(small_wheel, "1.4"))


def test_a_wheel_that_pip_does_not_refuse_fails_its_trial(small_wheel, environment):
    with pytest.raises(TrialFailed, match="pip installs sparsesteer-0.1.0-py3-none-any.whl beside torch"):
        try_refused(small_wheel, "1.4.0", environment)


def test_what_uninstalling_leaves_is_reported(small_wheel, environment):
    environment.install(small_wheel)
    (environment.site / "sparsesteer_left.py").write_text("")
    with pytest.raises(TrialFailed, match="uninstalling left sparsesteer_left.py"):
        environment.uninstall()


def test_expect_names_both_values():
    expect("version", "0.1.0", "0.1.0")
    with pytest.raises(TrialFailed, match="version: '0.1.0', expected '0.2.0'"):
        expect("version", "0.1.0", "0.2.0")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> dict[str, Path]:
    """A shared library with its symbols, and without."""
    folder = tmp_path_factory.mktemp("libraries")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    (folder / "one.c").write_text("static int hidden(void) { return 1; }\nint one(void) { return hidden(); }\n")
    made = {"whole": folder / "whole.so", "stripped": folder / "stripped.so"}
    run("cc", "-shared", "-fPIC", "-g", "one.c", "-o", made["whole"], cwd=folder)
    run("cc", "-shared", "-fPIC", "-s", "one.c", "-o", made["stripped"], cwd=folder)
    return made


@pytest.mark.parametrize(
    ("tag", "members", "fault"),
    [
        ("cp311-cp311-linux_x86_64", {"sparsesteer/_C.so": "stripped"}, None),
        ("cp311-cp311-linux_x86_64", {"sparsesteer/_C.so": "whole"}, "_C.so is not stripped"),
        ("cp311-cp311-linux_x86_64", {}, "0 shared libraries, expected 1"),
        ("py3-none-any", {"sparsesteer/_C.so": "stripped"}, "1 shared libraries, expected 0"),
        ("cp311-cp311-linux_x86_64", {"sparsesteer.libs/libtorch_cpu.so": "stripped"}, "belongs to torch"),
        ("cp311-cp311-linux_x86_64", {"sparsesteer.libs/libgomp-24e2ab19.so.1.0.0": "stripped"}, "belongs to torch"),
    ],
    ids=["good", "not stripped", "no library", "pure with a library", "libtorch inside", "libgomp inside"],
)
def test_faults_of_a_wheel(tmp_path, libraries, tag, members, fault):
    pytest.importorskip("elftools")
    wheel = tmp_path / f"sparsesteer-0.1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sparsesteer/__init__.py", "")
        for name, library in members.items():
            archive.write(libraries[library], name)
    found = faults(wheel)
    assert (not found) if fault is None else any(fault in text for text in found)


@pytest.mark.parametrize(("version", "expected"), [("2.13.0+cpu", "2.13"), ("2.9.1", "2.9"), ("2.14.0a0+git1", "2.14")])
def test_minor(version, expected):
    assert minor(version) == expected


def test_two_interpreters_of_one_minor_are_refused():
    pair = [Interpreter(Path(name), version, Path()) for name, version in (("a", "2.13.0"), ("b", "2.13.1"))]
    with pytest.raises(ValueError, match="two Pythons with the same minor version of torch: 2.13, 2.13"):
        command.different(pair)


def test_publishing_is_all_or_nothing(tmp_path, monkeypatch):
    artefacts = [tmp_path / name for name in ("a.whl", "b.whl")]
    for artefact in artefacts:
        artefact.write_text(artefact.name)
    copy = shutil.copyfile

    def full_disk(source, target):
        if source.name == "b.whl":
            raise OSError("no space left")
        return copy(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(shutil, "copyfile", full_disk)
        command.publish(artefacts, tmp_path / "dist")
    assert list((tmp_path / "dist").iterdir()) == []
    command.publish(artefacts, tmp_path / "dist")
    assert {path.name: path.read_text() for path in (tmp_path / "dist").iterdir()} == {
        "a.whl": "a.whl",
        "b.whl": "b.whl",
    }


@pytest.fixture
def repository(tmp_path) -> Path:
    """A fresh clone of what would be committed now."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", cwd=ROOT)
    clone = tmp_path / "clone"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    run("git", "init", "--quiet", cwd=clone)
    commit(clone)
    return clone


def commit(clone: Path) -> None:
    author = ("-c", "user.name=sparsesteer", "-c", "user.email=developers@sparsesteer.invalid")
    run("git", "add", "--all", cwd=clone)
    run("git", *author, "commit", "--quiet", "--message", "All of it", cwd=clone)


def release(clone: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "release", *options], cwd=clone, capture_output=True, text=True)


def test_changes_that_are_not_committed_stop_a_release(repository):
    (repository / "README.md").write_text("changed")
    result = release(repository)
    assert result.returncode == 1
    assert "No release: a release is of a commit, but 1 files differ from it, first ' M README.md'" in result.stderr
    assert not (repository / "dist").exists()


def test_a_changelog_against_the_rules_stops_a_release(repository):
    changelog = repository / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("## [Unreleased]", "## Unreleased"))
    commit(repository)
    result = release(repository)
    assert result.returncode == 1
    assert "No release: CHANGELOG.md: the first section must be [Unreleased]" in result.stderr


@pytest.mark.native
@pytest.mark.slow
def test_a_release_of_a_fresh_clone(repository):
    pytest.importorskip("auditwheel")
    result = release(repository)
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in (repository / "dist").iterdir())
    assert len(names) == 3 and names[2].endswith(".tar.gz")
    assert all(name in result.stdout for name in names)
    left = run("git", "status", "--porcelain", "--ignored", cwd=repository).splitlines()
    assert [line for line in left if not line.endswith("__pycache__/")] == ["!! dist/"]


def others() -> list[Path]:
    """Environments that `make test-torch` or `make release TORCH=` left."""
    return sorted(ROOT.glob("build/torch*/.venv/bin/python"))


@pytest.mark.native
@pytest.mark.slow
def test_a_native_wheel_beside_another_torch(repository, tmp_path):
    if not others():
        pytest.skip("there is no other torch; make test-torch TORCH=2.14.1 installs one")
    (tmp_path / "sdist").mkdir()
    here = Interpreter.at(Path(sys.executable))
    wheel = build_native_wheel(build_sdist(repository, tmp_path / "sdist"), here, tmp_path / "native")
    for other in map(Interpreter.at, others()):
        shown = try_refused(wheel, here.torch, Environment.new(tmp_path / f"env-{other.minor}", other))
        assert shown == f"torch {other.torch}: refused with the reason"
