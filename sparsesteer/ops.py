"""Public ops: check what came, choose a backend, call. Shapes: h [..., D], any leading shape of N tokens."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer import _dispatch, _native, reference
from sparsesteer._layout import Column

if TYPE_CHECKING:
    from sparsesteer.plans import SteeringPlan

_steer_eager = getattr(_native.extension, "steer_eager", None)
_INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def steer(
    h: Tensor,  # [..., D]
    plan: "SteeringPlan",
    strength: float | Tensor = 1.0,  # a number, or [...]
    *,
    into: Tensor | None = None,  # [..., D_out]
    residual: Tensor | None = None,  # [..., D]
    out: Tensor | None = None,  # [..., D_out]
    backend: str = "auto",
) -> Tensor:
    """Apply a plan's edits: into + strength * r * (sum_j d_j(h + residual) W_dec_j + constant part).

    Args:
        h: the tensor encoded (with ``residual`` added), floating point.
        strength: 0 leaves a token bit-identical; a tensor gives one strength per token.
        into: the tensor edited; h if not given.
        out: written and returned; may be ``into`` or ``h`` itself (in place).
        backend: "auto", "native", "triton" or "reference".

    Returns:
        [..., D_out] in the dtype of ``into``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, with what came and what was expected.
        RuntimeError: ``out`` while a gradient is being recorded; a named backend that cannot run.
    """
    if _steer_eager is not None and out is None and backend == "auto" and type(strength) in (float, int):
        if not plan.needs_sae and not torch.compiler.is_compiling():
            result = _steer_eager(
                h, into, residual, plan.encoder, plan.decoder, plan.rows, plan.delta_bias, strength,
                plan.input_norm, plan.scale_rule, plan.gap, plan.preserve_norm,
            )  # fmt: skip
            if result is not None:
                return result
    into = h if into is None else into
    _check_tensors(h, plan, into, residual, out)
    token_strength, number = _split_strength(strength, h)
    width, out_width = h.shape[-1], into.shape[-1]
    flat = (
        h.reshape(-1, width),
        into.reshape(-1, out_width),
        None if residual is None else residual.reshape(-1, width),
    )
    if plan.needs_sae:
        if out is not None:
            _check_no_gradient((*flat, token_strength))
        result = _steer_whole_sae(flat, plan, token_strength, number, backend)
        return result.view(into.shape) if out is None else out.copy_(result.view(into.shape))
    if plan.rows.dtype != reference.compute_dtype(h):
        plan = plan.to(dtype=reference.compute_dtype(h))
    arguments = (
        *flat, plan.encoder, plan.decoder, plan.rows, plan.delta_bias, token_strength, number,
        int(plan.input_norm), int(plan.scale_rule), plan.gap, plan.preserve_norm,
    )  # fmt: skip
    if out is None:
        return _call("steer", arguments, backend).view(into.shape)
    _check_no_gradient(arguments)
    _call("steer_out", arguments, backend, out=out.view(-1, out_width))
    return out


def _call(op: str, arguments: tuple, backend: str, **out: Tensor) -> Tensor:
    """Through the dispatcher, unless the call names a backend that the dispatcher would not take."""
    x = arguments[0]
    if backend == "auto":
        return getattr(torch.ops.sparsesteer, op)(*arguments, **out)
    chosen = _dispatch.resolve(backend, x, "steer")
    if chosen == "reference":
        result = reference.steer(*arguments)
        return out["out"].copy_(result) if out else result
    if chosen == _dispatch.resolve("auto", x, "steer"):
        return getattr(torch.ops.sparsesteer, op)(*arguments, **out)
    if _records_gradient(arguments):
        raise RuntimeError(
            f"steer: backend={backend!r} on {x.device} runs without autograd here; set SPARSESTEER_BACKEND={backend} "
            "before the import, or call under torch.no_grad()"
        )
    return _dispatch.implementation(op, chosen)(*arguments, **out)


def _steer_whole_sae(
    flat: tuple, plan: "SteeringPlan", token_strength: Tensor | None, strength: float, backend: str
) -> Tensor:
    """TopK and reconstruct plans: every feature of the SAE takes part."""
    if plan.sae is None:
        raise ValueError("steer: this plan needs its SAE; load it with SteeringPlan.load(path, sae=sae)")
    op = "steer_reconstruct" if plan.reconstruct else "steer_topk"
    if not torch.compiler.is_compiling():
        _dispatch.resolve(backend, flat[0], op)
    encoder, table = plan.sae.whole_encoder()
    bias = table[:, Column.BIAS]
    amount = (plan.delta_bias, token_strength, strength, int(plan.input_norm))
    if plan.reconstruct:
        rows = table.clone()
        rows[plan.features, Column.C0 :] = plan.rows[:, Column.C0 :]
        decoder, decoder_bias = plan.sae.whole_decoder()
        return torch.ops.sparsesteer.steer_reconstruct(
            *flat, encoder, rows, plan.k, decoder, decoder_bias, *amount, plan.preserve_norm
        )
    return torch.ops.sparsesteer.steer_topk(
        *flat, encoder, bias, plan.features, plan.k, plan.decoder, plan.rows, *amount,
        int(plan.scale_rule), plan.gap, plan.preserve_norm,
    )  # fmt: skip


def _check_tensors(h: Tensor, plan: "SteeringPlan", into: Tensor, residual: Tensor | None, out: Tensor | None) -> None:
    if h.dtype not in _INPUT_DTYPES:
        raise TypeError(f"steer: h should be fp32, fp64, fp16 or bf16, got {h.dtype}; convert it with h.float()")
    if h.dim() == 0 or h.shape[-1] != plan.encoder.shape[1]:
        raise ValueError(
            f"steer: h should have shape [..., {plan.encoder.shape[1]}], the width of the plan's SAE, "
            f"got {list(h.shape)}; is this the right layer and model?"
        )
    want = (*h.shape[:-1], plan.decoder.shape[1])
    for name, tensor, shape in (("into", into, want), ("residual", residual, tuple(h.shape)), ("out", out, want)):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"steer: {name} should have shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != h.dtype:
            raise TypeError(f"steer: {name} should have the dtype of h, {h.dtype}, got {tensor.dtype}")
        if tensor.device != h.device:
            raise ValueError(f"steer: {name} is on {tensor.device}, h on {h.device}; move one of them")
    if plan.device != h.device:
        raise ValueError(f"steer: the plan is on {plan.device}, h on {h.device}; use plan.to({str(h.device)!r})")
    if out is not None:
        _check_out(out, (h, into, residual))


def _check_out(out: Tensor, inputs: tuple[Tensor | None, ...]) -> None:
    if not out.is_contiguous():
        raise ValueError("steer: out should be contiguous; give a contiguous tensor, or copy the returned one")
    first, last = out.data_ptr(), out.data_ptr() + out.nbytes
    for tensor in inputs:
        if tensor is None or tensor.data_ptr() == first and tensor.stride() == out.stride():
            continue
        if tensor.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
            begin = tensor.data_ptr()
            span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            if begin < last and first < begin + span * tensor.element_size() and tensor.numel():
                raise ValueError("steer: out overlaps an input in part; give the input itself or separate memory")


def _split_strength(strength: float | Tensor, h: Tensor) -> tuple[Tensor | None, float]:
    """(strength per token [N] or None, number that multiplies it)."""
    if not isinstance(strength, Tensor):
        if not -math.inf < strength < math.inf:  # isfinite would break the graph of torch.compile
            raise ValueError(f"steer: strength should be finite, got {strength}")
        return None, float(strength)
    if strength.dim() == 0:
        strength = strength.expand(h.shape[:-1])
    if strength.shape != h.shape[:-1]:
        raise ValueError(
            f"steer: strength should be a number or have shape {list(h.shape[:-1])}, one per token, "
            f"got {list(strength.shape)}"
        )
    if strength.device != h.device:
        raise ValueError(f"steer: strength is on {strength.device}, h on {h.device}; move it")
    return strength.reshape(-1).to(reference.compute_dtype(h)), 1.0


def _records_gradient(arguments: tuple) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def _check_no_gradient(arguments: tuple) -> None:
    if _records_gradient(arguments):
        raise RuntimeError(
            "steer: out= and in-place steering cannot be recorded by autograd; "
            "use the returned tensor, or torch.no_grad()"
        )


def native_build() -> dict[str, str]:
    """What the loaded extension was built with; empty without one."""
    return _native.build_info()
