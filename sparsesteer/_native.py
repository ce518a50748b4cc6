"""Loads the compiled extension, or keeps the reason why not."""

import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sparsesteer import _schemas  # noqa: F401 - the ops must exist before the extension implements them

_BACKENDS_WITHOUT_EXTENSION = ("reference", "triton")


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _load() -> tuple[ModuleType | None, str]:
    """The extension module and "", or None and the reason."""
    wanted = os.environ.get("SPARSESTEER_BACKEND", "auto")
    if wanted in _BACKENDS_WITHOUT_EXTENSION:
        return None, f"SPARSESTEER_BACKEND={wanted} asks for another backend"
    # setup.py writes this record beside the extension: one built with another torch must not be opened to be asked
    try:
        from sparsesteer._build_result import REASON, TORCH_VERSION
    except ImportError:
        return None, "no build is on record; install with: pip install --no-build-isolation -e ."
    if TORCH_VERSION is None:
        return None, REASON
    if _minor(TORCH_VERSION) != _minor(torch.__version__):
        return None, (
            f"built with torch {TORCH_VERSION}, running torch {torch.__version__}: reinstall sparsesteer for torch "
            f"{_minor(torch.__version__)}, from its wheel or with --no-build-isolation --no-cache-dir"
        )
    try:
        return import_module("sparsesteer._C"), ""
    except ImportError as error:
        return None, f"the extension does not load: {error}"


extension, reason = _load()


def build_info() -> dict[str, str]:
    """What the extension was built with and runs on; empty without one."""
    return dict(extension.build_info()) if extension is not None else {}


def cuda_ops() -> tuple[str, ...]:
    """Ops with kernels for CUDA tensors; none in a build without CUDA."""
    return tuple(name.removesuffix("_cuda") for name in dir(extension) if name.endswith("_cuda"))


def cuda_refusal(op: str, x: Tensor, *others: object) -> str:
    """Why there is no CUDA kernel for a call of ``op``; empty if there is one.

    Without ``others``, the op's further arguments, nothing but the op itself is judged.
    """
    if op not in cuda_ops():
        return f"it serves CPU tensors, x is on {x.device}"
    return getattr(extension, f"{op}_cuda_refusal")(x, *others) if others else ""


def function(op: str, device_type: str) -> Callable[..., Any]:
    """The extension's ``op`` for tensors of a device, "cpu" or "cuda"."""
    found = getattr(extension, op if device_type == "cpu" else f"{op}_cuda")
    return found if not op.endswith("_out") else lambda *arguments, out: found(*arguments, out)
