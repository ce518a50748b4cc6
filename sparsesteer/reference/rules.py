"""The steps that ops are made of: norms, activations, edits, and how a change is written."""

import math

import torch
from torch import Tensor

from sparsesteer._layout import LAYER_NORM_EPS, Column, InputNorm, OutputScale


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp64 for fp64 input, fp32 for all else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def read_input(x: Tensor, residual: Tensor | None) -> Tensor:
    """x (+ residual) in the compute dtype, [N, D]."""
    dtype = compute_dtype(x)
    return x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)


def input_scale(x: Tensor, input_norm: int) -> Tensor | float:
    """The factor u [N, 1] of the encoder products; 0 for a token of norm 0, whose edit is scaled by 0 too."""
    if input_norm == InputNorm.LAYER_NORM:
        return 1.0 / (x.std(-1, keepdim=True) + LAYER_NORM_EPS)
    if input_norm == InputNorm.CONSTANT_NORM:
        norm = x.norm(dim=-1, keepdim=True)
        return torch.where(norm > 0, math.sqrt(x.shape[-1]) / norm, torch.zeros_like(norm))
    return 1.0


def output_scale(x: Tensor, d: Tensor, rule: int, gap: float) -> Tensor | float:
    """The factor r [N, 1] of the edit."""
    if rule == OutputScale.STD:
        return x.std(-1, keepdim=True)
    if rule == OutputScale.RMS:
        return x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
    if rule == OutputScale.NORM:
        return x.norm(dim=-1, keepdim=True)
    if rule == OutputScale.GAP_FILL:
        total = d.sum(-1, keepdim=True)
        return torch.where(total != 0, gap / total, torch.zeros_like(total))
    return 1.0


def undo_input_norm(out: Tensor, x: Tensor, input_norm: int) -> Tensor:
    """A reconstruction [N, D] of the normalised x back at the scale (and mean) of x [N, D]."""
    if input_norm == InputNorm.LAYER_NORM:
        return out * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
    if input_norm == InputNorm.CONSTANT_NORM:
        return out * x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
    return out


def activate(z: Tensor, rows: Tensor) -> Tensor:
    """Feature activations f of pre-activations z, both [N, M]; rows [M, 10]."""
    f = torch.maximum(rows[:, Column.SLOPE] * z + rows[:, Column.SHIFT], rows[:, Column.FLOOR])
    return torch.where(z > rows[:, Column.THRESHOLD], f, torch.zeros_like(f))


def edit_deltas(f: Tensor, rows: Tensor) -> Tensor:
    """d [N, M], the change of each edited feature's activation; f [N, M], rows [M, 10]."""
    d = rows[:, Column.C0] + rows[:, Column.C1] * f + rows[:, Column.C2] * torch.relu(f - rows[:, Column.KNOT])
    return torch.where((rows[:, Column.GATE] != 0) & (f <= 0), torch.zeros_like(d), d)


def inactive_deltas(rows: Tensor) -> Tensor:
    """d [M] of features that are not active; rows [M, 10]."""
    return edit_deltas(rows.new_zeros(1, len(rows)), rows)[0]


def write_change(
    into: Tensor,  # [N, D_out]
    change: Tensor,  # [N, D_out] in the compute dtype
    touched: Tensor,  # bool [N, 1], False keeps a row's bits
    token_strength: Tensor | None,  # [N]
    strength: float,
    preserve_norm: bool,
) -> Tensor:
    """into + s * change in the dtype of ``into``; rows that are not touched, or of strength 0, bit for bit."""
    factor = torch.full_like(change[:, :1], strength)
    if token_strength is not None:
        factor = factor * token_strength.to(change.dtype)[:, None]
    w = into.to(change.dtype)
    out = w + factor * change
    if preserve_norm:
        length = out.norm(dim=-1, keepdim=True)
        out = out * torch.where(length > 0, w.norm(dim=-1, keepdim=True) / length, torch.ones_like(length))
    return torch.where(touched & (factor != 0), out.to(into.dtype), into)


def apply_deltas(
    x: Tensor,  # [N, D] in the compute dtype
    into: Tensor,  # [N, D_out]
    d: Tensor,  # [N, M]
    decoder: Tensor,  # [M, D_out]
    delta_bias: Tensor | None,  # [D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> Tensor:
    """into + s * r * (d @ decoder + delta_bias), [N, D_out]."""
    change = d @ decoder.to(x.dtype)
    touched = (d != 0).any(-1, keepdim=True)
    if delta_bias is not None:
        change = change + delta_bias.to(x.dtype)
        touched = torch.ones_like(touched)
    change = change * output_scale(x, d, scale_rule, gap)
    return write_change(into, change, touched, token_strength, strength, preserve_norm)
