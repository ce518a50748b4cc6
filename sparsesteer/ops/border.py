"""What every public op checks before anything runs: what was expected, what came, the way out."""

import math

import torch
from torch import Tensor

from sparsesteer import reference

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_read(op: str, h: Tensor, width: int, owner: str, device: torch.device) -> None:
    """h [..., width] must fit ``owner``, the plan, bank or SAE that reads it."""
    if h.dtype not in INPUT_DTYPES:
        raise TypeError(f"{op}: h should be fp32, fp64, fp16 or bf16, got {h.dtype}; convert it with h.float()")
    if h.dim() == 0 or h.shape[-1] != width:
        raise ValueError(
            f"{op}: h should have shape [..., {width}], the width of the {owner}, "
            f"got {list(h.shape)}; is this the right layer and model?"
        )
    if device != h.device:
        thing = owner.removesuffix("'s SAE")
        raise ValueError(
            f"{op}: the {thing} is on {device}, h on {h.device}; use {thing.lower()}.to({str(h.device)!r})"
        )


def written_tensor(op: str, h: Tensor, into: Tensor | None, out_width: int) -> Tensor:
    """``into``, or h where what is read is written."""
    if into is None and h.shape[-1] != out_width:
        raise ValueError(
            f"{op}: what is read has width {h.shape[-1]}, what is written {out_width} (a transcoder); "
            "give the tensor to write to: into=w"
        )
    return h if into is None else into


def check_written(
    op: str, h: Tensor, out_width: int, into: Tensor, residual: Tensor | None, out: Tensor | None
) -> None:
    """The other tensors [..., width] of a call must go with h."""
    want = (*h.shape[:-1], out_width)
    for name, tensor, shape in (("into", into, want), ("residual", residual, tuple(h.shape)), ("out", out, want)):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} should have shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != h.dtype:
            raise TypeError(f"{op}: {name} should have the dtype of h, {h.dtype}, got {tensor.dtype}")
        if tensor.device != h.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, h on {h.device}; move one of them")
    if out is not None:
        _check_out(op, out, (h, into, residual))


def _check_out(op: str, out: Tensor, inputs: tuple[Tensor | None, ...]) -> None:
    if not out.is_contiguous():
        raise ValueError(f"{op}: out should be contiguous; give a contiguous tensor, or copy the returned one")
    first, last = out.data_ptr(), out.data_ptr() + out.nbytes
    for tensor in inputs:
        if tensor is None or tensor.data_ptr() == first and tensor.stride() == out.stride():
            continue
        if tensor.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
            begin = tensor.data_ptr()
            span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            if begin < last and first < begin + span * tensor.element_size() and tensor.numel():
                raise ValueError(f"{op}: out overlaps an input in part; give the input itself or separate memory")


def check_last(what: str, name: str, tensor: Tensor, width: int) -> None:
    """``tensor`` must be a floating point [..., width]."""
    if not tensor.is_floating_point():
        raise TypeError(f"{what}: {name} should be a floating point tensor, got {tensor.dtype}")
    if tensor.dim() == 0 or tensor.shape[-1] != width:
        raise ValueError(f"{what}: {name} should have shape [..., {width}], got {list(tensor.shape)}")


def split_strength(op: str, strength: float | Tensor, h: Tensor) -> tuple[Tensor | None, float]:
    """(strength per token [N] or None, number that multiplies it)."""
    if not isinstance(strength, Tensor):
        if not -math.inf < strength < math.inf:  # isfinite would break the graph of torch.compile
            raise ValueError(f"{op}: strength should be finite, got {strength}")
        return None, float(strength)
    if strength.dim() == 0:
        strength = strength.expand(h.shape[:-1])
    if strength.shape != h.shape[:-1]:
        raise ValueError(
            f"{op}: strength should be a number or have shape {list(h.shape[:-1])}, one per token, "
            f"got {list(strength.shape)}"
        )
    if strength.device != h.device:
        raise ValueError(f"{op}: strength is on {strength.device}, h on {h.device}; move it")
    return strength.reshape(-1).to(reference.compute_dtype(h)), 1.0


def flatten(tensor: Tensor) -> Tensor:
    """[..., W] as [N, W]."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def records_gradient(arguments: tuple) -> bool:
    """True if autograd watches this call."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def check_no_gradient(op: str, arguments: tuple) -> None:
    """For calls that write into a given tensor."""
    if records_gradient(arguments):
        raise RuntimeError(
            f"{op}: out= and in-place steering cannot be recorded by autograd; "
            "use the returned tensor, or torch.no_grad()"
        )
