"""What is installed: the build switch, the record it leaves, and pure wheel and sdist in an empty environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sparsesteer as ss
from sparsesteer import _native

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # release/ belongs to the repository, not to the package

from release.artefacts import build_sdist, build_wheel, faults  # noqa: E402
from release.interpreter import Interpreter  # noqa: E402
from release.trial import Environment, try_pure  # noqa: E402

FOLDERS = ("sparsesteer", "kernels", "benchmarks", "csrc")
RECORD = "sparsesteer._build_result"


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SPARSESTEER_", "PYTHONPATH"))}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | variables, capture_output=True, text=True, timeout=600
    )


def check(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the source tree without what a build left in it."""
    return copy_source(tmp_path / "source")


def copy_source(target: Path) -> Path:
    target.mkdir()
    made = shutil.ignore_patterns("*.so", "__pycache__", "_build_result.py")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=made)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, target)
    return target


def build(source: Path, **variables: str) -> tuple[subprocess.CompletedProcess, SimpleNamespace]:
    """``setup.py build`` and the record it leaves."""
    result = run(sys.executable, "setup.py", "-q", "build", "--build-lib", "built", cwd=source, **variables)
    record = SimpleNamespace()
    path = source / "built/sparsesteer/_build_result.py"
    if path.is_file():
        exec(path.read_text(), vars(record))
    return result, record


def test_an_unknown_choice_is_an_error(source):
    result, _ = build(source, SPARSESTEER_BUILD="nonsense")
    assert result.returncode != 0
    assert "SPARSESTEER_BUILD=nonsense is unknown; use auto, cpu, cuda, none" in result.stderr


def test_cuda_without_cuda_sources_is_an_error(source):
    shutil.rmtree(source / "csrc/cuda", ignore_errors=True)
    result, _ = build(source, SPARSESTEER_BUILD="cuda")
    assert result.returncode != 0
    assert "no CUDA sources" in result.stderr


def test_cpu_with_a_broken_compiler_is_an_error(source):
    result, record = build(source, SPARSESTEER_BUILD="cpu", CXX="/bin/false", CC="/bin/false")
    assert result.returncode != 0
    assert not vars(record)


def test_auto_with_a_broken_compiler_keeps_the_reason(source):
    package = source / "built/sparsesteer"
    package.mkdir(parents=True)
    stale = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.write_bytes(b"of an earlier build")
    result, record = build(source, CXX="/bin/false", CC="/bin/false")
    check(result)
    assert record.TORCH_VERSION is None
    assert "it did not compile" in record.REASON
    assert not stale.exists()


@pytest.mark.parametrize("choice", ["auto", "cpu"])
def test_a_build_environment_without_torch(source, tmp_path, choice):
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    result, record = build(source, SPARSESTEER_BUILD=choice, PYTHONPATH=str(tmp_path))
    if choice == "cpu":
        assert result.returncode != 0
        assert "reinstall with --no-build-isolation" in result.stderr
    else:
        check(result)
        assert record.TORCH_VERSION is None
        assert "torch was not present in the build environment" in record.REASON


def load_with(monkeypatch, record) -> tuple[object, str]:
    monkeypatch.delenv("SPARSESTEER_BACKEND", raising=False)
    monkeypatch.setitem(sys.modules, RECORD, record)
    return _native._load()


def test_an_extension_built_with_another_torch_is_not_loaded(monkeypatch):
    extension, reason = load_with(monkeypatch, SimpleNamespace(TORCH_VERSION="1.4.0+cpu", REASON=""))
    assert extension is None
    assert reason.startswith(f"built with torch 1.4.0+cpu, running torch {torch.__version__}: reinstall")


def test_the_reason_on_record_is_passed_on(monkeypatch):
    assert load_with(monkeypatch, SimpleNamespace(TORCH_VERSION=None, REASON="no compiler")) == (None, "no compiler")


def test_an_extension_without_a_record_is_not_loaded(monkeypatch):
    extension, reason = load_with(monkeypatch, None)  # None makes the import fail
    assert extension is None
    assert "no build is on record" in reason


def test_an_extension_that_does_not_load_gives_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparsesteer._C", None)
    extension, reason = load_with(monkeypatch, SimpleNamespace(TORCH_VERSION=torch.__version__, REASON=""))
    assert extension is None
    assert "the extension does not load" in reason


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the pure wheel built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    sdist = build_sdist(copy_source(folder / "source"), folder)
    return sdist, build_wheel(sdist, Path(sys.executable), folder, "none")


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment.new(tmp_path / "env", Interpreter.at(Path(sys.executable)))


def package_files() -> set[str]:
    """Every file that an installation holds, the linked folders as real ones."""
    shipped = {"sparsesteer/py.typed"}
    assets = ROOT / "sparsesteer/assets"
    shipped |= {str(path.relative_to(ROOT)) for path in assets.rglob("*") if path.is_file()}
    shipped |= {str(path.relative_to(ROOT)) for path in (ROOT / "sparsesteer").rglob("*.py")}
    for linked in ("kernels", "benchmarks"):
        shipped |= {f"sparsesteer/{path.relative_to(ROOT)}" for path in (ROOT / linked).glob("*.py")}
    return shipped | {"sparsesteer/_build_result.py"}


def test_pure_wheel_holds_the_package_and_nothing_else(distributions):
    _, wheel = distributions
    assert wheel.name == f"sparsesteer-{ss.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert not faults(wheel)


def test_sdist_holds_what_a_build_needs(distributions):
    sdist, _ = distributions
    with tarfile.open(sdist) as archive:
        members = {member.name.split("/", 1)[-1]: member for member in archive.getmembers()}
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    wanted = package_files() - {"sparsesteer/_build_result.py"}
    assert wanted | native | {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CITATION.cff"} <= set(members)
    assert all(members[name].isfile() for name in wanted)  # no symlink, the archive may be unpacked anywhere
    assert not faults(sdist)


@pytest.mark.parametrize("which", [0, 1], ids=["sdist", "wheel"])
def test_pure_in_an_empty_environment(distributions, environment, which):
    pytest.importorskip("triton")
    assert "reference, triton" in try_pure(distributions[which], ss.__version__, environment)
