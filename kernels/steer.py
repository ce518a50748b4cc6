"""``steer`` in Triton: shrink (x to the edits d, or to parts of them) and expand (the edits added to ``into``).

All products with x are finished before the first add, so the result may overwrite x or ``into``. Partial sums are
added in a fixed order: same input, same bits. Nothing waits for the host, so that CUDA graphs can hold a call.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsesteer.kernels.expand import Call, call_of, expand_edits, keep_length, new_edits
from sparsesteer.kernels.rules import (
    GAP_FILL,
    edit_deltas,
    encode_tile,
    input_scale,
    load_tile,
    moments_of_parts,
    output_scale,
    weighted_rows,
)
from sparsesteer.kernels.tiling import SteerTiling, ceil_div, steer_tiling
from sparsesteer.kernels.tunings import tuned
from sparsesteer.kernels.write import write_tile


@triton.jit(do_not_specialize=["n_tokens"])
def shrink_split(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
    products_ptr, moments_ptr, n_tokens, n_rows, width, split_width,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr, MOMENTS: tl.constexpr,
):  # fmt: skip
    """Products [splits, N, M] and moments [2, splits, N] of a part of the width."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = tokens < n_tokens, rows < n_rows
    start = tl.program_id(2) * split_width
    products, mean, m2 = encode_tile(
        x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
        tokens, in_tokens, rows, in_rows, start, tl.minimum(start + split_width, width), STEP, MOMENTS,
    )  # fmt: skip
    at = tl.program_id(2).to(tl.int64) * n_tokens + tokens
    tl.store(products_ptr + at[:, None] * n_rows + rows[None, :], products, in_tokens[:, None] & in_rows[None, :])
    if MOMENTS:
        if tl.program_id(1) == 0:
            tl.store(moments_ptr + at, mean, in_tokens)
            tl.store(moments_ptr + tl.cast(n_tokens, tl.int64) * SPLITS + at, m2, in_tokens)


@triton.jit(do_not_specialize=["n_tokens"])
def shrink_whole(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, rows_ptr,
    d_ptr, live_ptr, total_ptr, scale_ptr, n_tokens, n_rows, width, gap,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, MOMENTS: tl.constexpr,
    INPUT_NORM: tl.constexpr, SCALE_RULE: tl.constexpr,
):  # fmt: skip
    """Finished edits d [N, M]; for each block of rows how many are not 0 and their sum [blocks, N]; scales r [N]."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = tokens < n_tokens, rows < n_rows
    products, mean, m2 = encode_tile(
        x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
        tokens, in_tokens, rows, in_rows, 0, width, STEP, MOMENTS,
    )  # fmt: skip
    d = edit_deltas(products, input_scale(mean, m2, tl.cast(width, tl.float32), INPUT_NORM), rows_ptr, rows, in_rows)
    tl.store(d_ptr + tokens[:, None] * n_rows + rows[None, :], d, in_tokens[:, None] & in_rows[None, :])
    at = tl.program_id(1).to(tl.int64) * n_tokens + tokens
    total = tl.sum(d, axis=1)
    tl.store(live_ptr + at, tl.sum((d != 0).to(tl.int32), axis=1), in_tokens)
    tl.store(total_ptr + at, total, in_tokens)
    if SCALE_RULE != GAP_FILL:
        if tl.program_id(1) == 0:
            scale = output_scale(mean, m2, tl.cast(width, tl.float32), total, gap, SCALE_RULE)
            tl.store(scale_ptr + tokens, scale, in_tokens)


@triton.jit(do_not_specialize=["n_tokens"])
def expand_split(
    products_ptr, moments_ptr, rows_ptr, decoder_ptr, decoder_stride, bias_ptr,
    token_strength_ptr, token_strength_stride, into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr,
    n_tokens, n_rows, width, split_width, out_width, strength, gap,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, MOMENTS: tl.constexpr,
    INPUT_NORM: tl.constexpr, SCALE_RULE: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Adds up what ``shrink_split`` left, edits, and writes one block of the width."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    in_tokens, in_columns = tokens < n_tokens, columns < out_width
    mean, m2 = moments_of_parts(moments_ptr, tokens, in_tokens, n_tokens, width, split_width, SPLITS, MOMENTS)
    u = input_scale(mean, m2, tl.cast(width, tl.float32), INPUT_NORM)
    change = tl.zeros([TOKENS, WIDTH], tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    live = tl.zeros([TOKENS], tl.int32)
    for first in range(0, n_rows, ROWS):
        rows = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
        in_rows = rows < n_rows
        products = tl.zeros([TOKENS, ROWS], tl.float32)
        for split in tl.static_range(SPLITS):
            at = tl.cast(n_tokens, tl.int64) * split + tokens
            products += load_tile(products_ptr, n_rows, at, in_tokens, rows, in_rows)
        d = edit_deltas(products, u, rows_ptr, rows, in_rows)
        block_live = tl.sum((d != 0).to(tl.int32), axis=1)
        if tl.max(block_live) > 0:
            decoder = load_tile(decoder_ptr, decoder_stride, rows, in_rows, columns, in_columns)
            change += weighted_rows(d, decoder)
        total += tl.sum(d, axis=1)
        live += block_live
    scale = output_scale(mean, m2, tl.cast(width, tl.float32), total, gap, SCALE_RULE)
    write_tile(
        change, live > 0, scale, strength, token_strength_ptr, token_strength_stride, bias_ptr,
        into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr,
        tokens, in_tokens, columns, in_columns, out_width, IN_PLACE,
    )  # fmt: skip


def steer(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
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
    """``reference.steer``; returns [N, D_out]."""
    out = into.new_empty(into.shape)
    steer_out(
        x, into, residual, encoder, decoder, rows, delta_bias, token_strength,
        strength, input_norm, scale_rule, gap, preserve_norm, out=out,
    )  # fmt: skip
    return out


def steer_out(
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
    *,
    out: Tensor,  # [N, D_out], may be x or into
) -> None:
    """``steer`` written to ``out``, whose rows need unit stride."""
    n, out_width = out.shape
    if out_width > 1 and out.stride(1) != 1:
        raise ValueError(f"steer_out: the rows of out should have unit stride, got strides {out.stride()}")
    if n == 0:
        return
    call = call_of(
        x, into, residual, encoder, decoder, rows, delta_bias, token_strength,
        strength, input_norm, scale_rule, gap, preserve_norm, out,
    )  # fmt: skip
    tiling = tuned("steer", steer_tiling(*call.sizes), call.sizes, x.device)
    with torch.cuda.device_of(x):
        if tiling.splits > 1:
            _launch_split(call, tiling)
        else:
            _launch_whole(call, tiling)
        keep_length(call)


def _launch_split(call: Call, tiling: SteerTiling) -> None:
    n, m, width, out_width = call.sizes
    products = call.rows.new_empty(tiling.splits, n, m)
    moments = call.rows.new_empty(2, tiling.splits, n) if call.moments else None
    tiles = ceil_div(n, tiling.tokens)
    shared = {"TOKENS": tiling.tokens, "SPLITS": tiling.splits, "MOMENTS": call.moments} | tiling.options
    shrink_split[tiles, max(1, ceil_div(m, tiling.shrink_rows)), tiling.splits](
        *call.source, products, moments, n, m, width, tiling.split_width,
        ROWS=tiling.shrink_rows, STEP=tiling.shrink_step, **shared,
    )  # fmt: skip
    expand_split[tiles, ceil_div(out_width, tiling.expand_width)](
        products, moments, call.rows, *call.decoder, *call.target,
        n, m, width, tiling.split_width, out_width, *call.numbers,
        ROWS=tiling.expand_rows, WIDTH=tiling.expand_width, IN_PLACE=call.in_place, **call.rules, **shared,
    )  # fmt: skip


def _launch_whole(call: Call, tiling: SteerTiling) -> None:
    n, m, width, _ = call.sizes
    edits = new_edits(call, tiling)
    shrink_whole[ceil_div(n, tiling.tokens), len(edits[1])](
        *call.source, call.rows, *edits, n, m, width, call.numbers[1],
        TOKENS=tiling.tokens, ROWS=tiling.shrink_rows, STEP=tiling.shrink_step, MOMENTS=call.moments,
        **call.rules, **tiling.options,
    )  # fmt: skip
    expand_edits(call, tiling, edits)
