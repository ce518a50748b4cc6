"""Compiles the CUDA kernels and their bindings for the CPU, against tests/cuda_emulation instead of CUDA.

Checks of what they compute are here too.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import sae_cases
import torch
from steer_cases import edit_error, rounding_excess
from torch.utils.cpp_extension import include_paths

from sparsesteer._layout import InputNorm, OutputScale

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc/cuda"
EMULATION = ROOT / "tests/cuda_emulation"
BUILD = ROOT / "build/emulated_cuda"
NAME = "emulated_cuda"

ORDERS = ("rising", "falling", "shuffled")  # of threads
ENOUGH_SHARED = 160 << 10  # bytes
EDIT_ERROR = 1e-5
NARROW_EXCESS = 1e-2  # of the row's edit, beyond half an ulp of the output
RULES = [
    pytest.param(norm, scale, keep, id=f"{norm.name}-{scale.name}-{'keep' if keep else 'free'}")
    for norm in InputNorm
    for scale in OutputScale
    for keep in (False, True)
]


def missing() -> str:
    """Why the kernels cannot be emulated here; empty if they can."""
    return "" if shutil.which("g++") else "there is no g++"


def load() -> ModuleType:
    """The module; what was compiled from the same sources before is not compiled again."""
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cpp"), *EMULATION.glob("*.cpp")])
    shared = [KERNELS.parent / name for name in ("layout.h", "check.h")]
    headers = [*shared, *(path for path in _files(KERNELS, EMULATION) if path not in sources)]
    common = _digest(torch.__version__.encode(), *(path.read_bytes() for path in headers))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: _compile(source, common), sources))
    library = BUILD / f"{NAME}_{_digest(*(path.name.encode() for path in objects))}.so"
    if not library.exists():
        libraries = Path(torch.__file__).parent / "lib"
        _make(library, "g++", "-shared", *objects, f"-L{libraries}", "-lc10", "-ltorch_cpu", "-ltorch_python")
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _compile(source: Path, common: str) -> Path:
    is_binding = source.parent == KERNELS and source.suffix == ".cpp"
    options = ["-std=c++20", "-O0" if is_binding else "-O1", "-fPIC", "-ffp-contract=off", "-w"]
    options.append(f"-DTORCH_EXTENSION_NAME={NAME}")
    target = BUILD / f"{source.name}_{_digest(common.encode(), source.read_bytes(), str(options).encode())}.o"
    if not target.exists():
        includes = [f"-I{path}" for path in (EMULATION, *include_paths(), sysconfig.get_path("include"))]
        _make(target, "g++", *options, *includes, "-x", "c++", "-c", source)
    return target


def _make(target: Path, *command: object) -> None:
    """Run a compiler; a target that exists is whole."""
    partial = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*map(str, command), "-o", str(partial)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    partial.rename(target)


def compare(out: torch.Tensor, want: torch.Tensor, into: torch.Tensor) -> None:
    """The edit against fp64."""
    if out.dtype == torch.float32:
        assert edit_error(out, want, into) < EDIT_ERROR
    else:
        assert rounding_excess(out, want, into) < NARROW_EXCESS


def check(cuda: ModuleType, op: str, given: dict, clear: torch.Tensor | None = None) -> torch.Tensor:
    """The result of ``op``, compared with the reference's for all tokens or the clear ones."""
    out, want, into = getattr(cuda, f"{op}_cuda")(*given.values()), sae_cases.expected(op, given), given["into"]
    clear = torch.ones(len(out), dtype=torch.bool) if clear is None else clear
    assert clear.float().mean() > 0.8 or len(clear) < 10
    compare(out[clear], want[clear], into[clear])
    return out


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Its numbers as integers, so that -0 differs from 0 and NaN equals itself."""
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)
