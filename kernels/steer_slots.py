"""``steer_slots`` in Triton: shrink (x to the products or edits of each token's own slot) and expand, as in ``steer``.

A program owns a tile of tokens and takes the different slots in it one after the other, each for the whole tile under
a mask. Tokens of one request lie together, so there is almost always one; any mixture gives the right result, without
sorting. One token is a tile too. Entries are counted within their slot: what lies between shrink and expand has a row
of P numbers for each token, of which only the entries of its slot are touched. Where N x P is large, the tokens go
through in chunks; sizes and grids depend on shapes alone, so that CUDA graphs can hold a call while plans change.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsesteer._layout import InputNorm, OutputScale
from sparsesteer.kernels.operands import matrix, weights
from sparsesteer.kernels.rules import (
    edit_deltas,
    encode_tile,
    input_scale,
    load_tile,
    moments_of_parts,
    output_scale,
    weighted_rows,
)
from sparsesteer.kernels.tiling import KEEP_NORM_STEP, ceil_div
from sparsesteer.kernels.tiling_slots import SlotsTiling, slots_tiling
from sparsesteer.kernels.write import keep_norm, write_tile

_MOMENT_SCALES = (OutputScale.STD, OutputScale.RMS, OutputScale.NORM)


@triton.jit
def slots_of(slot_ptr, tokens, in_tokens, n_slots):
    """The slot [N] of each token, ``n_slots`` where it has none."""
    slots = tl.load(slot_ptr + tokens, in_tokens, other=-1)
    return tl.where((slots >= 0) & (slots < n_slots), slots, n_slots)


@triton.jit
def following(slots, slot, n_slots):
    """The smallest of ``slots`` [N] above ``slot``."""
    return tl.min(tl.where(slots > slot, slots, n_slots), axis=0)


@triton.jit(do_not_specialize=["n_tokens"])
def shrink_slots(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
    slot_ptr, slots_ptr, entry_row_ptr, rows_ptr, parts_ptr, moments_ptr,
    n_tokens, n_slots, n_entries, width, split_width,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
    MOMENTS: tl.constexpr, INPUT_NORM: tl.constexpr,
):  # fmt: skip
    """Parts [splits, N, P]: products of a part of the width, finished edits if there is one part; and its moments
    [2, splits, N]. Programs along the second axis share the entries of a slot."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    start = tl.program_id(2) * split_width
    stop = tl.minimum(start + split_width, width)
    at = tl.program_id(2).to(tl.int64) * n_tokens + tokens
    slots = slots_of(slot_ptr, tokens, tokens < n_tokens, n_slots)
    slot = tl.min(slots, axis=0)
    while slot < n_slots:
        mine = slots == slot
        first = tl.load(slots_ptr + slot * 3)
        count = tl.load(slots_ptr + slot * 3 + 1)
        has_bias = tl.load(slots_ptr + slot * 3 + 2)
        # a slot of a bias alone has no entries, but its scale may need the moments
        for begin in range(tl.program_id(1) * ROWS, tl.maximum(count, has_bias), tl.num_programs(1) * ROWS):
            entries = begin + tl.arange(0, ROWS)
            in_entries = entries < count
            shared = tl.load(entry_row_ptr + first + entries, in_entries, other=0).to(tl.int64)
            part, mean, m2 = encode_tile(
                x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
                tokens, mine, shared, in_entries, start, stop, STEP, MOMENTS,
            )  # fmt: skip
            if SPLITS == 1:
                u = input_scale(mean, m2, tl.cast(width, tl.float32), INPUT_NORM)
                part = edit_deltas(part, u, rows_ptr, first + entries, in_entries)
            tl.store(parts_ptr + at[:, None] * n_entries + entries[None, :], part, mine[:, None] & in_entries[None, :])
            if MOMENTS:
                if begin == 0:
                    tl.store(moments_ptr + at, mean, mine)
                    tl.store(moments_ptr + tl.cast(n_tokens, tl.int64) * SPLITS + at, m2, mine)
        slot = following(slots, slot, n_slots)


@triton.jit(do_not_specialize=["n_tokens"])
def expand_slots(
    parts_ptr, moments_ptr, slot_ptr, slots_ptr, entry_row_ptr, rows_ptr, decoder_ptr, decoder_stride,
    slot_bias_ptr, slot_bias_stride, token_strength_ptr, token_strength_stride,
    into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr,
    n_tokens, n_slots, n_entries, width, split_width, out_width, strength, gap,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, MOMENTS: tl.constexpr,
    INPUT_NORM: tl.constexpr, SCALE_RULE: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Adds up what ``shrink_slots`` left, edits, and writes one block of the width."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    in_tokens, in_columns = tokens < n_tokens, columns < out_width
    mean, m2 = moments_of_parts(moments_ptr, tokens, in_tokens, n_tokens, width, split_width, SPLITS, MOMENTS)
    u = input_scale(mean, m2, tl.cast(width, tl.float32), INPUT_NORM)
    change = tl.zeros([TOKENS, WIDTH], tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    live = tl.zeros([TOKENS], tl.int32)
    slots = slots_of(slot_ptr, tokens, in_tokens, n_slots)
    slot = tl.min(slots, axis=0)
    while slot < n_slots:
        mine = slots == slot
        first = tl.load(slots_ptr + slot * 3)
        count = tl.load(slots_ptr + slot * 3 + 1)
        for begin in range(0, count, ROWS):
            entries = begin + tl.arange(0, ROWS)
            in_entries = entries < count
            d = tl.zeros([TOKENS, ROWS], tl.float32)
            for split in tl.static_range(SPLITS):
                at = tl.cast(n_tokens, tl.int64) * split + tokens
                d += load_tile(parts_ptr, n_entries, at, mine, entries, in_entries)
            if SPLITS > 1:
                d = edit_deltas(d, u, rows_ptr, first + entries, in_entries)
                d = tl.where(mine[:, None], d, 0.0)
            block_live = tl.sum((d != 0).to(tl.int32), axis=1)
            if tl.max(block_live) > 0:
                shared = tl.load(entry_row_ptr + first + entries, in_entries, other=0).to(tl.int64)
                decoder = load_tile(decoder_ptr, decoder_stride, shared, in_entries, columns, in_columns)
                # a plan with infinite rows must not reach the tokens of another slot as 0 times infinity
                change += tl.where(mine[:, None], weighted_rows(d, decoder), 0.0)
            total += tl.sum(d, axis=1)
            live += block_live
        if tl.load(slots_ptr + slot * 3 + 2) != 0:
            bias = tl.load(slot_bias_ptr + tl.cast(slot, tl.int64) * slot_bias_stride + columns, in_columns, other=0.0)
            change += tl.where(mine[:, None], bias[None, :], 0.0)
            live += mine.to(tl.int32)
        slot = following(slots, slot, n_slots)
    scale = output_scale(mean, m2, tl.cast(width, tl.float32), total, gap, SCALE_RULE)
    write_tile(
        change, live > 0, scale, strength, token_strength_ptr, token_strength_stride, None,
        into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr,
        tokens, in_tokens, columns, in_columns, out_width, IN_PLACE,
    )  # fmt: skip


def steer_slots(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    slot: Tensor,  # int32 [N], any number that is not a slot for none
    slots: Tensor,  # int32 [S, 3]: first entry, number of entries, 1 if the slot has a bias
    encoder: Tensor,  # [R, D]
    decoder: Tensor,  # [R, D_out]
    entry_row: Tensor,  # int32 [P]
    rows: Tensor,  # [P, 10]
    slot_bias: Tensor,  # [S, D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> Tensor:
    """``reference.steer_slots``; returns [N, D_out]. The tables are trusted: a device cannot check them."""
    out = into.new_empty(into.shape)
    steer_slots_out(
        x, into, residual, slot, slots, encoder, decoder, entry_row, rows, slot_bias, token_strength,
        strength, input_norm, scale_rule, gap, preserve_norm, out=out,
    )  # fmt: skip
    return out


def steer_slots_out(
    x: Tensor,
    into: Tensor,
    residual: Tensor | None,
    slot: Tensor,
    slots: Tensor,
    encoder: Tensor,
    decoder: Tensor,
    entry_row: Tensor,
    rows: Tensor,
    slot_bias: Tensor,
    token_strength: Tensor | None,
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
    *,
    out: Tensor,  # [N, D_out], may be x or into
) -> None:
    """``steer_slots`` written to ``out``, whose rows need unit stride."""
    n, out_width = out.shape
    if out_width > 1 and out.stride(1) != 1:
        raise ValueError(f"steer_slots_out: the rows of out should have unit stride, got strides {out.stride()}")
    tables = (slots.contiguous(), entry_row.contiguous(), rows.float().contiguous())
    shared = (matrix(weights(encoder)), (*matrix(weights(decoder)), *matrix(slot_bias.float())))
    rules = _Rules(strength, int(input_norm), int(scale_rule), gap, preserve_norm)
    tiling = slots_tiling(n, len(entry_row), x.shape[1], out_width)
    with torch.cuda.device_of(x):
        for first in range(0, n, tiling.chunk):
            part = slice(first, first + tiling.chunk)
            read = (*matrix(x[part]), *matrix(None if residual is None else residual[part]))
            strengths = None if token_strength is None else token_strength[part].float()[:, None]
            written = (*matrix(into[part]), out[part], out.stride(0))
            _launch(read, slot[part].contiguous(), tables, shared, matrix(strengths), written, rules, tiling)


class _Rules(NamedTuple):
    """The numbers of one call."""

    strength: float
    input_norm: int
    scale_rule: int
    gap: float
    preserve_norm: bool


def _launch(
    read: tuple,  # x, residual, each with its stride
    slot: Tensor,  # int32 [N]
    tables: tuple[Tensor, Tensor, Tensor],  # slots, entry_row, rows
    shared: tuple[tuple, tuple],  # encoder; decoder and slot_bias
    strengths: tuple,
    written: tuple,  # into, out
    rules: _Rules,
    tiling: SlotsTiling,
) -> None:
    """One chunk of tokens."""
    (x, *_), (slots, entry_row, rows) = read, tables
    into, into_stride, out, out_stride = written
    n, out_width = out.shape
    width = x.shape[1]
    moments = rules.input_norm != InputNorm.NONE or rules.scale_rule in _MOMENT_SCALES
    new = rows.new_empty
    left = new(tiling.splits, n, len(entry_row)), new(2, tiling.splits, n) if moments else None
    kept = (new(n, out_width), new(n)) if rules.preserve_norm else (None, None)
    sizes = n, len(slots), len(entry_row), width, tiling.split_width
    tiles = ceil_div(n, tiling.tokens)
    constants = {
        "TOKENS": tiling.tokens, "SPLITS": tiling.splits, "MOMENTS": moments, "INPUT_NORM": rules.input_norm,
    } | tiling.options  # fmt: skip
    shrink_slots[tiles, tiling.row_groups, tiling.splits](
        *read, *shared[0], slot, *tables, *left, *sizes,
        ROWS=tiling.shrink_rows, STEP=tiling.shrink_step, **constants,
    )  # fmt: skip
    expand_slots[tiles, ceil_div(out_width, tiling.expand_width)](
        *left, slot, *tables, *shared[1], *strengths, *written, *kept,
        *sizes, out_width, rules.strength, rules.gap,
        ROWS=tiling.expand_rows, WIDTH=tiling.expand_width, SCALE_RULE=rules.scale_rule,
        IN_PLACE=out.data_ptr() == into.data_ptr() and out_stride == into_stride, **constants,
    )  # fmt: skip
    if rules.preserve_norm:
        keep_norm[(n,)](*written, *kept, out_width, STEP=KEEP_NORM_STEP)
