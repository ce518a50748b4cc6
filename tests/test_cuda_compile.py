"""Every CUDA source compiles with nvcc alone for the architectures it is for, without spilled registers.

Needs no GPU. The kernels have never run on one; ``test_cuda_emulation.py`` says what is known of their logic.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

KERNELS = Path(__file__).resolve().parents[1] / "csrc/cuda"
SOURCES = sorted(KERNELS.glob("*.cu"))
BINDINGS = sorted(KERNELS.glob("*.cpp"))
# Bytes that are spilled all the same: by steer_topk for 8 tokens with bf16 rows, 8 stored and 4 loaded.
KNOWN_SPILLS = {("steer_topk", "sm_90a"): 12}
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")


def find_nvcc() -> Path | None:
    """On the path, in CUDA_HOME, in the usual folder, or from the packages of PyPI."""
    folders = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"))
    installed = [shutil.which("nvcc"), *(f"{folder}/bin/nvcc" for folder in folders if folder), *packaged]
    return next((Path(path) for path in installed if path and Path(path).exists()), None)


NVCC = find_nvcc()
if NVCC is None:
    pytest.skip("there is no nvcc", allow_module_level=True)


def compile_for(architecture: str, source: Path, target: Path, *options: str) -> str:
    """What the assembler reports of each kernel."""
    command = [NVCC, "-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas=-v", *options, "-c", source, "-o", target]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def spilled_bytes(report: str) -> list[int]:
    """Of each kernel, stores and loads together."""
    return [int(stores) + int(loads) for stores, loads in re.findall(r"(\d+) bytes spill stores, (\d+) bytes", report)]


def check(architecture: str, folder: Path) -> None:
    def report(source: Path) -> str:
        return compile_for(architecture, source, folder / f"{source.stem}.o")

    with ThreadPoolExecutor(2) as pool:
        for source, text in zip(SOURCES, pool.map(report, SOURCES), strict=True):
            spills = spilled_bytes(text)
            known = KNOWN_SPILLS.get((source.stem, architecture), 0)
            assert spills and sum(spills) <= known, f"{source.name} spills on {architecture}: {spills}"


def test_compiles_without_spills(tmp_path):
    check("sm_90a", tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_spills_everywhere(architecture, tmp_path):
    check(architecture, tmp_path)


def test_a_spill_is_seen(tmp_path):
    """The gate itself: more live numbers than a thread may have registers."""
    numbers = [f"float v{i} = p[{i} * n];" for i in range(64)]
    uses = [f"p[{i}] = v{i} * v{63 - i};" for i in range(64)]
    source = tmp_path / "hungry.cu"
    source.write_text(f"__global__ void hungry(float* p, int n) {{ {' '.join(numbers)} {' '.join(uses)} }}")
    assert spilled_bytes(compile_for("sm_90a", source, tmp_path / "hungry.o"))[0] == 0
    assert spilled_bytes(compile_for("sm_90a", source, tmp_path / "hungry.o", "-maxrregcount=24"))[0] > 0


@pytest.mark.full
@pytest.mark.parametrize("source", BINDINGS, ids=lambda path: path.name)
def test_bindings_compile_against_cuda_and_torch(source):
    """Against the real headers, which a torch without CUDA has too, but for one that says how CUDA was found."""
    includes = [*include_paths(), NVCC.resolve().parents[1] / "include", "/usr/local/cuda/include"]
    command = [
        "g++",
        "-std=c++20",
        "-Wall",
        "-Werror=return-type",
        "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",
        "-fsyntax-only",
    ]
    done = subprocess.run([*command, *(f"-I{path}" for path in includes), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
