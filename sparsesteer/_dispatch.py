"""Picks the implementation of an op: by device, by SPARSESTEER_BACKEND, or by the name a call gives.

native: the compiled extension, CPU tensors, and few tokens on CUDA where it was built with CUDA.
triton: CUDA tensors, or CPU tensors in Triton's interpreter (TRITON_INTERPRET=1).
reference: plain torch, any tensor.
auto takes the first that serves the call.
"""

import os
from collections.abc import Callable
from importlib import import_module, util
from typing import Any

import torch
from torch import Tensor

from sparsesteer import _native, reference
from sparsesteer._schemas import LIBRARY

BACKENDS = ("native", "triton", "reference")
TRITON_OPS = (
    "steer", "steer_out", "encode", "decode", "steer_topk", "steer_reconstruct", "steer_slots", "steer_slots_out",
    "activations", "activations_topk",
)  # fmt: skip
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def missing(backend: str) -> str:
    """Why a backend cannot run here at all; empty if it can."""
    if backend == "native":
        return _native.reason
    if backend == "triton":
        if util.find_spec("triton") is None:
            return "triton is not installed"
        if not torch.cuda.is_available() and not interpreting():
            return "no CUDA device, and TRITON_INTERPRET=1 is not set"
    return ""


def interpreting() -> bool:
    """True if Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def default_backend() -> str:
    """SPARSESTEER_BACKEND, or "auto". Raises ValueError for an unknown name."""
    name = os.environ.get("SPARSESTEER_BACKEND", "auto")
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"SPARSESTEER_BACKEND={name} is unknown; use auto, {', '.join(BACKENDS)}")
    return name


def resolve(backend: str, x: Tensor, op: str, *others: object) -> str:
    """The backend that runs ``op`` on x and ``others``, its further arguments; without these, on x of any size.

    Raises:
        RuntimeError: a backend is named and cannot run here, or not on this tensor.
    """
    named = backend if backend != "auto" else default_backend()
    if named not in ("auto", *BACKENDS):
        raise ValueError(f"{op}: unknown backend {named!r}; use auto, {', '.join(BACKENDS)}")
    candidates = BACKENDS if named == "auto" else (named,)
    for name in candidates:
        why = missing(name) or _mismatch(name, x, op, others)
        if not why:
            return name
    raise RuntimeError(f"{op}: backend {named!r} was asked for and cannot run: {why}")


def _mismatch(backend: str, x: Tensor, op: str, others: tuple) -> str:
    """Why a backend that is present does not serve this call; empty if it does."""
    if backend == "native" and x.device.type != "cpu":
        return _native.cuda_refusal(op, x, *others)
    if backend == "native" and not hasattr(_native.extension, op):
        return f"it does not implement {op}"
    if backend == "triton":
        if op not in TRITON_OPS:
            return f"it does not implement {op}"
        if x.dtype not in TRITON_DTYPES:
            return f"it serves fp32, fp16 and bf16, x is {x.dtype}"
        if x.device.type != ("cpu" if interpreting() else "cuda"):
            return f"x is on {x.device}"
    return ""


def implementation(op: str, backend: str, device_type: str) -> Callable[..., Any]:
    """The function behind ``op`` of a backend on a device, with the op's own arguments, below autograd."""
    if backend == "native":
        return _native.function(op, device_type)
    if backend == "triton":
        return getattr(import_module(f"sparsesteer.kernels.{op.removesuffix('_out')}"), op)
    return getattr(reference, op)


def _registered(op: str) -> Callable:
    """What ``torch.ops.sparsesteer.<op>`` runs on tensors that the extension does not serve."""

    def run(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        backend = resolve("auto", x, op.removesuffix("_out"), *args)
        if backend == "reference" and op.endswith("_out"):
            kwargs["out"].copy_(getattr(reference, op.removesuffix("_out"))(x, *args))  # type: ignore[attr-defined]
            return None  # type: ignore[return-value]
        return implementation(op, backend, x.device.type)(x, *args, **kwargs)

    return run


def _register() -> None:
    keys = ["CUDA"] if _native.extension is not None else ["CUDA", "CPU"]
    for op in TRITON_OPS:
        for key in keys:
            LIBRARY.impl(op, _registered(op), key)
    for op in set(_native.cuda_ops()) - set(TRITON_OPS):
        LIBRARY.impl(op, _registered(op), "CUDA")


_register()
