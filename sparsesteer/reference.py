"""Plain torch, the truth of every op: same names and arguments as ``torch.ops.sparsesteer``.

Arithmetic is fp64 where x is fp64 and fp32 otherwise; results come in the dtype of the tensor written.
Letters: N tokens, D model width, F features, M edited features, K active features, S slots.
"""

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


def steer(
    x: Tensor,  # [N, D] tensor read
    into: Tensor,  # [N, D_out] tensor written to
    residual: Tensor | None,  # [N, D] added to x before encoding
    encoder: Tensor,  # [M, D]
    decoder: Tensor,  # [M, D_out]
    rows: Tensor,  # [M, 10]
    delta_bias: Tensor | None,  # [D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> Tensor:
    """w' = w + s r (sum_j d_j decoder_j + bias), every d_j from the x that entered; [N, D_out]."""
    x = read_input(x, residual)
    z = (x @ encoder.to(x.dtype).T) * input_scale(x, input_norm) + rows[:, Column.BIAS].to(x.dtype)
    d = edit_deltas(activate(z, rows.to(x.dtype)), rows.to(x.dtype))
    return apply_deltas(x, into, d, decoder, delta_bias, token_strength, strength, scale_rule, gap, preserve_norm)


def rank_within(z: Tensor, features: Tensor) -> Tensor:
    """For each edited feature how many features come before it: larger, or equal with a lower index.

    z [N, F], features [M] -> int64 [N, M]. Loops over the M features: nothing N x F x M is made.
    """
    index = torch.arange(z.shape[1], device=z.device)
    ranks = []
    for i in range(len(features)):
        feature = features[i : i + 1]
        own = z.index_select(1, feature)
        ranks.append(((z > own) | ((z == own) & (index < feature))).sum(-1))
    return torch.stack(ranks, -1) if ranks else z.new_zeros(len(z), 0, dtype=torch.int64)


def steer_topk(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [F, D], the whole SAE's (any strides), scaled by the decoder norms where it ranks by them
    encoder_bias: Tensor,  # [F]
    features: Tensor,  # int64 [M]
    k: int,
    decoder: Tensor,  # [M, D_out]
    rows: Tensor,  # [M, 10], its BIAS column unused
    delta_bias: Tensor | None,  # [D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> Tensor:
    """``steer`` where a feature is active iff z_j > 0 and fewer than k features come before it; [N, D_out]."""
    x = read_input(x, residual)
    z = (x @ encoder.to(x.dtype).T) * input_scale(x, input_norm) + encoder_bias.to(x.dtype)
    active = (rank_within(z, features) < k) & (z[:, features] > 0)
    rows = rows.to(x.dtype)
    f = torch.where(active, activate(z[:, features], rows), torch.zeros((), dtype=x.dtype, device=x.device))
    d = edit_deltas(f, rows)
    return apply_deltas(x, into, d, decoder, delta_bias, token_strength, strength, scale_rule, gap, preserve_norm)


def dense_codes(
    x: Tensor,  # [N, D] in the compute dtype
    encoder: Tensor,  # [F, D]
    rows: Tensor,  # [F, 10]
    k: int,
    input_norm: int,
) -> Tensor:
    """All activations [N, F]; with k > 0 only each token's k largest positive ones, lower index first in ties."""
    rows = rows.to(x.dtype)
    z = (x @ encoder.to(x.dtype).T) * input_scale(x, input_norm) + rows[:, Column.BIAS]
    f = activate(z, rows)
    if k == 0 or k >= z.shape[1]:
        return f
    first = z.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(f).scatter(-1, first, f.gather(-1, first))


def encode(
    x: Tensor,  # [N, D]
    encoder: Tensor,  # [F, D]
    rows: Tensor,  # [F, 10]
    k: int,
    width: int,
    input_norm: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Active features of every token, by falling activation: values [N, width], int32 indices [N, width]
    padded with -1, int32 counts [N]. A count above ``width`` says that the row overflowed."""
    f = dense_codes(read_input(x, None), encoder, rows, k, input_norm)
    counts = (f != 0).sum(-1, dtype=torch.int32)
    order = torch.where(f != 0, f, f.new_full((), -math.inf)).sort(dim=-1, descending=True, stable=True).indices
    order = order[:, :width]
    values = f.gather(-1, order)
    missing = width - order.shape[1]
    values = torch.nn.functional.pad(values, (0, missing))
    indices = torch.nn.functional.pad(order.to(torch.int32), (0, missing), value=-1)
    return values, torch.where(values != 0, indices, indices.new_full((), -1)), counts


def decode(
    values: Tensor,  # [N, K]
    indices: Tensor,  # int32 [N, K], -1 is padding
    decoder: Tensor,  # [F, D_out]
    bias: Tensor,  # [D_out]
) -> Tensor:
    """sum_k values_k decoder[indices_k] + bias, [N, D_out] in the dtype of ``values``."""
    weights = torch.where(indices >= 0, values, torch.zeros_like(values))
    picked = decoder[indices.clamp(min=0).long()].to(values.dtype)
    return (weights[..., None] * picked).sum(-2) + bias.to(values.dtype)


def steer_reconstruct(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [F, D]
    rows: Tensor,  # [F, 10], C0..GATE zero where nothing is edited
    k: int,
    decoder: Tensor,  # [F, D_out]
    decoder_bias: Tensor,  # [D_out]
    delta_bias: Tensor | None,  # [D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    preserve_norm: bool,
) -> Tensor:
    """w + s * (decode(edit(encode(x))) - w): at s = 1 the SAE's edited reconstruction, error dropped."""
    x = read_input(x, residual)
    f = dense_codes(x, encoder, rows, k, input_norm)
    codes = f + edit_deltas(f, rows.to(x.dtype))
    out = codes @ decoder.to(x.dtype) + decoder_bias.to(x.dtype)
    if delta_bias is not None:
        out = out + delta_bias.to(x.dtype)
    out = undo_input_norm(out, x, input_norm)
    touched = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
    return write_change(into, out - into.to(x.dtype), touched, token_strength, strength, preserve_norm)


def steer_slots(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    slot: Tensor,  # int32 [N], -1 for none
    encoder: Tensor,  # [R, D] rows shared by all slots
    decoder: Tensor,  # [R, D_out]
    slot_start: Tensor,  # int32 [S + 1], slot s owns the entries slot_start[s] : slot_start[s + 1]
    entry_row: Tensor,  # int32 [P], the shared row of each entry
    rows: Tensor,  # [P, 10], one per entry
    slot_bias: Tensor,  # [S, D_out], zeros where a slot has none
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> Tensor:
    """``steer`` with the plan of each token's own slot; [N, D_out]."""
    out = into.clone()
    for s in range(len(slot_start) - 1):
        chosen = (slot == s).nonzero()[:, 0]
        entries = slice(int(slot_start[s]), int(slot_start[s + 1]))
        shared = entry_row[entries].long()
        bias = slot_bias[s] if bool((slot_bias[s] != 0).any()) else None
        out[chosen] = steer(
            x[chosen],
            into[chosen],
            None if residual is None else residual[chosen],
            encoder[shared],
            decoder[shared],
            rows[entries],
            bias,
            None if token_strength is None else token_strength[chosen],
            strength,
            input_norm,
            scale_rule,
            gap,
            preserve_norm,
        )
    return out
