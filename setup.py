"""Builds the extension sparsesteer._C; all metadata stands in pyproject.toml.

The environment variable SPARSESTEER_BUILD chooses:
    auto  build it; if that fails, install pure Python and keep the reason for `sparsesteer info` (the default)
    cpu   build it, or fail
    cuda  build it with the CUDA sources too, or fail; TORCH_CUDA_ARCH_LIST names the architectures
    none  pure Python
SPARSESTEER_SANITIZE=1 adds the address and undefined-behaviour sanitizers (tests/sanitizer.sh).
"""

import os
from glob import glob
from pathlib import Path
from subprocess import CalledProcessError

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError, SetupError

CHOICES = ("auto", "cpu", "cuda", "none")
BUILD = os.environ.get("SPARSESTEER_BUILD", "auto")
COMPILE_FAILURES = (BaseError, CCompilerError, CalledProcessError, OSError, RuntimeError)

SANITIZERS = []
if os.environ.get("SPARSESTEER_SANITIZE") == "1":
    # vptr needs the RTTI of libraries that have none
    SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-g1", "-O1"]

os.environ.setdefault("MAX_JOBS", "2")  # a compiler process takes about 1 GB


def record(package: Path, torch_version: str | None, reason: str) -> None:
    """Tell sparsesteer._native what was built; an extension left by an earlier build goes if there is none now."""
    if torch_version is None:
        for stale in package.glob("_C*.so"):
            stale.unlink()
    lines = f"TORCH_VERSION: str | None = {torch_version!r}", f"REASON = {reason!r}", ""
    (package / "_build_result.py").write_text("\n".join(lines))


def why_pure() -> str:
    """The reason to build no extension; empty if one shall be built."""
    if BUILD not in CHOICES:
        raise SetupError(f"SPARSESTEER_BUILD={BUILD} is unknown; use {', '.join(CHOICES)}")
    if BUILD == "cuda" and not glob("csrc/cuda/*.cu"):
        raise SetupError("SPARSESTEER_BUILD=cuda: there are no CUDA sources in csrc/cuda")
    if BUILD == "none":
        return "it was not built (SPARSESTEER_BUILD=none)"
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError as error:
        reason = f"torch was not present in the build environment ({error}); reinstall with --no-build-isolation"
        if BUILD != "auto":
            raise SetupError(f"SPARSESTEER_BUILD={BUILD}: {reason}") from error
        return reason
    return ""


def pure(reason: str) -> dict:
    """Arguments of ``setup`` for an installation without the extension."""

    class BuildPython(build_py):
        def run(self) -> None:
            super().run()
            record(Path("sparsesteer" if self.editable_mode else f"{self.build_lib}/sparsesteer"), None, reason)

    return {"cmdclass": {"build_py": BuildPython}}


def native() -> dict:
    """Arguments of ``setup`` for an installation with the extension."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class BuildNative(BuildExtension):
        def run(self) -> None:
            package = Path(self.get_ext_fullpath("sparsesteer._C")).parent
            try:
                super().run()
            except COMPILE_FAILURES as error:
                if BUILD != "auto":
                    raise
                self.extensions: list[Extension] = []
                record(package, None, f"it did not compile ({error}); SPARSESTEER_BUILD=cpu and pip -v show why")
            else:
                record(package, torch.__version__, "")

    with_cuda = BUILD == "cuda"
    if with_cuda and torch.version.cuda is None:
        raise SetupError(f"SPARSESTEER_BUILD=cuda: torch {torch.__version__} was built without CUDA")
    folders = ["csrc", "csrc/cpu", *(["csrc/cuda"] if with_cuda else [])]
    # messages name csrc/... and torch/include/..., not the folders of the machine where a wheel was built
    nameless = [f"-ffile-prefix-map={folder}/=" for folder in (Path.cwd(), Path(torch.__file__).parents[1])]
    extension = (CUDAExtension if with_cuda else CppExtension)(
        "sparsesteer._C",
        sorted(path for folder in folders for suffix in ("cpp", "cu") for path in glob(f"{folder}/*.{suffix}")),
        depends=[path for suffix in ("h", "cuh") for path in glob(f"csrc/**/*.{suffix}", recursive=True)],
        define_macros=[("SPARSESTEER_CUDA", None)] if with_cuda else [],
        # no -march: the kernels choose their instruction set at run time
        extra_compile_args={"cxx": ["-O3", "-g0", "-fopenmp", *nameless, *SANITIZERS], "nvcc": ["-O3"]},
        extra_link_args=["-fopenmp", *(SANITIZERS or ["-s"])],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildNative}}


reason = why_pure()
setup(**pure(reason) if reason else native())
