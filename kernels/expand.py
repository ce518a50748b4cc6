"""Finished edits d enter the tensor written: the last steps of every op that edits rows of its own."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsesteer._layout import InputNorm, OutputScale
from sparsesteer.kernels.operands import matrix, weights
from sparsesteer.kernels.rules import GAP_FILL, load_tile, weighted_rows
from sparsesteer.kernels.tiling import KEEP_NORM_STEP, SteerTiling, ceil_div
from sparsesteer.kernels.write import keep_norm, write_tile

_MOMENT_SCALES = (OutputScale.STD, OutputScale.RMS, OutputScale.NORM)


@triton.jit(do_not_specialize=["n_tokens"])
def expand_whole(
    d_ptr, live_ptr, total_ptr, scale_ptr, decoder_ptr, decoder_stride, bias_ptr,
    token_strength_ptr, token_strength_stride, into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr,
    n_tokens, n_rows, out_width, strength, gap,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    SCALE_RULE: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Writes one block of the width from finished edits; blocks of rows without an edit are not read."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    in_tokens, in_columns = tokens < n_tokens, columns < out_width
    change = tl.zeros([TOKENS, WIDTH], tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    live = tl.zeros([TOKENS], tl.int32)
    for block in range(0, n_rows, BLOCK):
        at = tl.cast(block // BLOCK, tl.int64) * n_tokens + tokens
        block_live = tl.load(live_ptr + at, in_tokens, other=0)
        if tl.max(block_live) > 0:
            for first in range(block, tl.minimum(block + BLOCK, n_rows), ROWS):
                rows = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
                in_rows = rows < n_rows
                d = load_tile(d_ptr, n_rows, tokens, in_tokens, rows, in_rows)
                decoder = load_tile(decoder_ptr, decoder_stride, rows, in_rows, columns, in_columns)
                change += weighted_rows(d, decoder)
        total += tl.load(total_ptr + at, in_tokens, other=0.0)
        live += block_live
    if SCALE_RULE == GAP_FILL:
        scale = tl.where(total != 0, gap / total, 0.0)
    else:
        scale = tl.load(scale_ptr + tokens, in_tokens, other=0.0)
    write_tile(
        change, live > 0, scale, strength, token_strength_ptr, token_strength_stride, bias_ptr,
        into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr,
        tokens, in_tokens, columns, in_columns, out_width, IN_PLACE,
    )  # fmt: skip


class Call(NamedTuple):
    """The arguments of one call, in the groups that the kernels take them in."""

    source: tuple
    rows: Tensor
    decoder: tuple
    target: tuple  # strengths, into, out, and where norms are kept the change and its factor
    sizes: tuple[int, int, int, int]  # N, M, D, D_out
    numbers: tuple[float, float]
    rules: dict[str, int]
    moments: bool
    in_place: bool


def call_of(
    x: Tensor, into: Tensor, residual: Tensor | None, encoder: Tensor, decoder: Tensor, rows: Tensor,
    delta_bias: Tensor | None, token_strength: Tensor | None, strength: float,
    input_norm: int, scale_rule: int, gap: float, preserve_norm: bool, out: Tensor,
) -> Call:  # fmt: skip
    """The arguments of ``steer_out`` made ready for the kernels; ``encoder`` may have other rows than the edits."""
    strengths = None if token_strength is None else token_strength.float()[:, None]
    change = out.new_empty(out.shape, dtype=torch.float32) if preserve_norm else None
    factor = out.new_empty(len(out), dtype=torch.float32) if preserve_norm else None
    return Call(
        source=(*matrix(x), *matrix(residual), *matrix(weights(encoder))),
        rows=rows.float().contiguous(),
        decoder=(*matrix(weights(decoder)), None if delta_bias is None else delta_bias.float().contiguous()),
        target=(*matrix(strengths), *matrix(into), out, out.stride(0), change, factor),
        sizes=(*out.shape[:1], len(rows), x.shape[1], out.shape[1]),
        numbers=(strength, gap),
        rules={"INPUT_NORM": int(input_norm), "SCALE_RULE": int(scale_rule)},
        moments=input_norm != InputNorm.NONE or scale_rule in _MOMENT_SCALES,
        in_place=out.data_ptr() == into.data_ptr() and out.stride() == into.stride(),
    )


def new_edits(call: Call, tiling: SteerTiling) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for d [N, M], for each block of rows how many d are not 0 and their sum [blocks, N], and r [N]."""
    n, m = call.sizes[:2]
    blocks = max(1, ceil_div(m, tiling.shrink_rows))
    new = call.rows.new_empty
    return new(n, m), new(blocks, n, dtype=torch.int32), new(blocks, n), new(n)


def expand_edits(call: Call, tiling: SteerTiling, edits: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Writes finished edits; where norms are kept only the change."""
    n, m, _, out_width = call.sizes
    expand_whole[ceil_div(n, tiling.tokens), ceil_div(out_width, tiling.expand_width)](
        *edits, *call.decoder, *call.target, n, m, out_width, *call.numbers,
        TOKENS=tiling.tokens, BLOCK=tiling.shrink_rows, ROWS=min(tiling.shrink_rows, tiling.expand_rows),
        WIDTH=tiling.expand_width, SCALE_RULE=call.rules["SCALE_RULE"], IN_PLACE=call.in_place, **tiling.options,
    )  # fmt: skip


def keep_length(call: Call) -> None:
    """The last pass of a call that preserves norms; nothing for any other."""
    if call.target[-1] is not None:
        keep_norm[(call.sizes[0],)](*call.target[2:], call.sizes[3], STEP=KEEP_NORM_STEP)
