"""Gradients in plain torch, traced by torch.compile: of ``steer`` in closed form, of other ops by recomputation."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer._layout import Column, InputNorm, OutputScale


def steer_backward(
    grad: Tensor,  # [N, D_out]
    x: Tensor,
    into: Tensor,
    residual: Tensor | None,
    encoder: Tensor,
    decoder: Tensor,
    rows: Tensor,
    delta_bias: Tensor | None,
    token_strength: Tensor | None,
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> dict[str, Tensor | None]:
    """d(loss)/d(argument) for every tensor argument of ``steer``, by name.

    The step of a jump (threshold, gate) and the kink of a hinge carry no gradient.
    """
    xs = reference.read_input(x, residual)
    dtype = xs.dtype
    e, table, dec = encoder.to(dtype), rows.to(dtype), decoder.to(dtype)
    u = reference.input_scale(xs, input_norm)
    raw = xs @ e.T
    z = raw * u + table[:, Column.BIAS]
    f = reference.activate(z, table)
    d = reference.edit_deltas(f, table)
    r = reference.output_scale(xs, d, scale_rule, gap)
    v = d @ dec
    if delta_bias is not None:
        v = v + delta_bias.to(dtype)
    s = torch.full_like(v[:, :1], strength)
    if token_strength is not None:
        s = s * token_strength.to(dtype)[:, None]

    grad = grad.to(dtype)
    grad_into, grad_change = _through_norm(grad, into.to(dtype), s * r * v, preserve_norm)
    along = (grad_change * v).sum(-1, keepdim=True)
    grad_v = s * r * grad_change
    grad_d = grad_v @ dec.T
    if scale_rule == OutputScale.GAP_FILL:
        total = d.sum(-1, keepdim=True)
        grad_d = grad_d - torch.where(total != 0, along * s * gap / total.square(), torch.zeros_like(total))
    live = torch.where((table[:, Column.GATE] != 0) & (f <= 0), torch.zeros_like(f), torch.ones_like(f))
    grad_d = grad_d * live
    hinge = (f > table[:, Column.KNOT]).to(dtype)
    grad_f = grad_d * (table[:, Column.C1] + table[:, Column.C2] * hinge)
    grad_f = torch.where(z > table[:, Column.THRESHOLD], grad_f, torch.zeros_like(grad_f))
    linear = table[:, Column.SLOPE] * z + table[:, Column.SHIFT] > table[:, Column.FLOOR]
    grad_linear = torch.where(linear, grad_f, torch.zeros_like(grad_f))
    grad_z = grad_linear * table[:, Column.SLOPE]

    grad_u = (grad_z * raw).sum(-1, keepdim=True)
    grad_x = (grad_z * u) @ e + _through_scales(xs, u, grad_u, s * along, input_norm, scale_rule)
    grad_rows = torch.zeros_like(table)
    grad_rows[:, Column.BIAS] = grad_z.sum(0)
    grad_rows[:, Column.SLOPE] = (grad_linear * z).sum(0)
    grad_rows[:, Column.SHIFT] = grad_linear.sum(0)
    grad_rows[:, Column.FLOOR] = (grad_f - grad_linear).sum(0)
    grad_rows[:, Column.C0] = grad_d.sum(0)
    grad_rows[:, Column.C1] = (grad_d * f).sum(0)
    grad_rows[:, Column.C2] = (grad_d * torch.relu(f - table[:, Column.KNOT])).sum(0)
    grad_rows[:, Column.KNOT] = -(grad_d * table[:, Column.C2] * hinge).sum(0)
    return {
        "x": grad_x.to(x.dtype),
        "into": grad_into.to(into.dtype),
        "residual": None if residual is None else grad_x.to(residual.dtype),
        "encoder": ((grad_z * u).T @ xs).to(encoder.dtype),
        "decoder": (d.T @ grad_v).to(decoder.dtype),
        "rows": grad_rows.to(rows.dtype),
        "delta_bias": None if delta_bias is None else grad_v.sum(0).to(delta_bias.dtype),
        "token_strength": None if token_strength is None else (strength * r * along)[:, 0].to(token_strength.dtype),
    }


def _through_norm(grad: Tensor, w: Tensor, change: Tensor, preserve_norm: bool) -> tuple[Tensor, Tensor]:
    """Gradients with respect to w (in all) and to the change added to it; out = (w + change) ||w|| / ||w + change||."""
    if not preserve_norm:
        return grad, grad
    y = w + change
    length, kept = y.norm(dim=-1, keepdim=True), w.norm(dim=-1, keepdim=True)
    live = (length > 0) & (kept > 0)
    length, kept = torch.where(live, length, 1.0), torch.where(live, kept, 1.0)
    ratio, along = kept / length, (grad * y).sum(-1, keepdim=True)
    grad_y = torch.where(live, ratio * (grad - y * along / length.square()), grad)
    return grad_y + torch.where(live, along / length * w / kept, torch.zeros_like(w)), grad_y


def _through_scales(
    x: Tensor, u: Tensor | float, grad_u: Tensor, grad_r: Tensor, input_norm: int, scale_rule: int
) -> Tensor | float:
    """The part of d(loss)/dx that flows through the scales u(x) and r(x), [N, D]."""
    total: Tensor | float = 0.0
    width = x.shape[-1]
    if input_norm == InputNorm.LAYER_NORM or scale_rule == OutputScale.STD:
        centred = x - x.mean(-1, keepdim=True)
        std = x.std(-1, keepdim=True)
        d_std = centred / torch.where(std > 0, std, torch.ones_like(std)) / (width - 1)
        if input_norm == InputNorm.LAYER_NORM:
            total = total - grad_u * u * u * d_std
        if scale_rule == OutputScale.STD:
            total = total + grad_r * d_std
    if input_norm == InputNorm.CONSTANT_NORM or scale_rule in (OutputScale.RMS, OutputScale.NORM):
        norm = x.norm(dim=-1, keepdim=True)
        d_norm = x / torch.where(norm > 0, norm, torch.ones_like(norm))
        if input_norm == InputNorm.CONSTANT_NORM:
            total = total - grad_u * u * d_norm / torch.where(norm > 0, norm, torch.ones_like(norm))
        if scale_rule == OutputScale.RMS:
            total = total + grad_r * d_norm / math.sqrt(width)
        if scale_rule == OutputScale.NORM:
            total = total + grad_r * d_norm
    return total


def save_inputs(ctx: Any, inputs: tuple, output: object) -> None:
    """Keep an op's arguments for ``recompute_gradient``, the tensors where autograd can watch them."""
    ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)))
    ctx.others = [None if isinstance(a, Tensor) else (a,) for a in inputs]


def recompute_gradient(op: Callable) -> Callable:
    """The backward of an op: autograd through ``op``, its reference, run again on the saved arguments."""

    def backward(ctx: Any, *output_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved).detach() if other is None else other[0] for other in ctx.others]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        for i in wanted:
            inputs[i] = inputs[i].requires_grad_()
        with torch.enable_grad():
            outputs = op(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, output_grads, strict=True) if o.requires_grad and g is not None]
        grads: list[Tensor | None] = [None] * len(inputs)
        if pairs:
            found = torch.autograd.grad(
                [o for o, _ in pairs], [inputs[i] for i in wanted], [g for _, g in pairs], allow_unused=True
            )
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
        return tuple(grads)

    return backward
