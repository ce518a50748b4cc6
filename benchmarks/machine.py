"""What a measurement ran on: device, versions, commit, and the rates that limit any implementation there."""

import platform
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import sparsesteer
from sparsesteer import ops

_SOURCES = ("--", ".", ":!benchmarks/results", ":!README.md")  # a long run writes results as it goes
PACKAGES = ("triton", "transformers", "sae-lens")
MEMORY_BYTES = 256 << 20  # far larger than any cache of a CPU
LEAST_BYTES = 1 << 20  # below that a copy measures the cost of a call
# [n, k] @ [k, m]: which of them runs fastest depends on caches and libraries
MATMULS = {"cpu": ((512, 576, 64), (512, 2304, 1024), (1024, 1024, 1024)), "cuda": ((8192, 8192, 8192),)}
REPEATS, LEAST_SECONDS = 7, 0.1  # other work on the machine comes and goes, the longer the more surely


def device_name(device: str) -> str:
    """The processor or GPU in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of everything that takes part; what is not installed is left out."""
    found = {"sparsesteer": sparsesteer.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    build = ops.native_build()
    return found | ({"native": ", ".join(f"{key} {value}" for key, value in build.items())} if build else {})


def commit() -> str:
    """The commit of the source tree, marked if files differ from it, results aside; "unknown" outside of a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return "unknown"
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True).stdout
            for command in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", *_SOURCES),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + (" with changes" if changed.strip() else "")


@cache
def facts(device: str) -> dict[str, object]:
    """What every row of a benchmark carries about where it was measured."""
    return {"device": device_name(device), "versions": versions(), "commit": commit()}


def bandwidth(device: str, n_bytes: int) -> float:
    """Bytes per second that a working set of this size can move: the faster of copying and summing it."""
    size = min(MEMORY_BYTES, max(LEAST_BYTES, 1 << (n_bytes - 1).bit_length()))
    return _bandwidth(device, size)


@cache
def _bandwidth(device: str, size: int) -> float:
    source = torch.ones(size // 8, device=device)  # half of the working set, fp32; the other half is written
    target = torch.empty_like(source)
    whole = torch.ones(size // 4, device=device)
    return max(size / _fastest(lambda: target.copy_(source), device), size / _fastest(whole.sum, device))


@cache
def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Floating point operations per second of the fastest of a few matrix products."""
    return max(_matmul_rate(device, dtype, *shape) for shape in MATMULS[device])


def _matmul_rate(device: str, dtype: torch.dtype, n: int, k: int, m: int) -> float:
    a = torch.randn(n, k, device=device).to(dtype)
    b = torch.randn(m, k, device=device).to(dtype)  # rows as an SAE keeps them
    return 2 * n * k * m / _fastest(lambda: a @ b.T, device)


def _fastest(call: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of a few calls: the limit is what the machine can do, not what it usually does."""
    times: list[float] = []
    deadline = time.perf_counter() + LEAST_SECONDS
    while len(times) < REPEATS or time.perf_counter() < deadline:
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
