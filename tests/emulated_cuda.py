"""Compiles the CUDA kernels and their bindings for the CPU, against tests/cuda_emulation instead of CUDA."""

import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc/cuda"
EMULATION = ROOT / "tests/cuda_emulation"
NAME = "emulated_cuda"


def missing() -> str:
    """Why the kernels cannot be emulated here; empty if they can."""
    return "" if shutil.which("g++") else "there is no g++"


def load() -> ModuleType:
    """The module, compiled unless the same sources were before."""
    sources = sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cpp"), *EMULATION.glob("*.cpp")])
    content = [
        *sorted(p for folder in (KERNELS, EMULATION) for p in folder.rglob("*") if p.is_file()),
        *KERNELS.parent.glob("*.h"),
        Path(__file__),
    ]
    digest = hashlib.sha256(torch.__version__.encode())
    for path in content:
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"{NAME}_{digest.hexdigest()[:16]}"
    library = folder / f"{NAME}.so"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda source: _compile(source, folder), sources))
        libraries = Path(torch.__file__).parent / "lib"
        _run(
            "g++", "-shared", *objects, f"-L{libraries}", "-lc10", "-ltorch_cpu", "-ltorch_python",
            "-o", library.with_suffix(".partial"),
        )  # fmt: skip
        library.with_suffix(".partial").rename(library)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(source: Path, folder: Path) -> Path:
    target = folder / f"{source.name}.o"
    includes = [EMULATION, *include_paths(), sysconfig.get_path("include")]
    _run(
        "g++", "-std=c++20", "-O0" if source.parent == KERNELS and source.suffix == ".cpp" else "-O1", "-fPIC", "-ffp-contract=off", "-w", f"-DTORCH_EXTENSION_NAME={NAME}",
        *(f"-I{folder}" for folder in includes), "-x", "c++", "-c", source, "-o", target,
    )  # fmt: skip
    return target


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
