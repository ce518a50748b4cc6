"""Activations: of chosen features, of a whole SAE as sparse codes, and reconstructions from these."""

import math

import torch
from torch import Tensor

from sparsesteer._layout import Column
from sparsesteer.reference.rules import activate, input_scale, read_input


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


def activations(
    x: Tensor,  # [N, D]
    residual: Tensor | None,  # [N, D] added to x before encoding
    encoder: Tensor,  # [M, D]
    rows: Tensor,  # [M, 10], of which the edits are not read
    input_norm: int,
) -> Tensor:
    """f [N, M] of the rows in the compute dtype: what ``steer`` edits."""
    x = read_input(x, residual)
    z = (x @ encoder.to(x.dtype).T) * input_scale(x, input_norm) + rows[:, Column.BIAS].to(x.dtype)
    return activate(z, rows.to(x.dtype))


def activations_topk(
    x: Tensor,  # [N, D]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [F, D], the whole SAE's
    encoder_bias: Tensor,  # [F]
    features: Tensor,  # int64 [M]
    k: int,
    rows: Tensor,  # [M, 10], its BIAS column and its edits are not read
    input_norm: int,
) -> Tensor:
    """``activations`` where a feature is active iff z_j > 0 and fewer than k features come before it: what
    ``steer_topk`` edits. With k = 0 of an SAE without TopK, by its rows alone."""
    x = read_input(x, residual)
    z = (x @ encoder.to(x.dtype).T) * input_scale(x, input_norm) + encoder_bias.to(x.dtype)
    f = activate(z[:, features], rows.to(x.dtype))
    if k == 0:
        return f
    active = (rank_within(z, features) < k) & (z[:, features] > 0)
    return torch.where(active, f, torch.zeros_like(f))


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


def encode_screened(
    x: Tensor,  # [N, D]
    encoder: Tensor,  # [F, D]
    rows: Tensor,  # [F, 10]
    screen: Tensor,  # int8 [F, D], the encoder in steps of ``screen_scale``
    screen_scale: Tensor,  # [F, ceil(D / 128)]
    screen_error: Tensor,  # [F], bounds what the screen misses of z, in units of u ||x||
    k: int,
    width: int,
    input_norm: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``encode``; the screen only tells a kernel which features need no exact look."""
    return encode(x, encoder, rows, k, width, input_norm)


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
