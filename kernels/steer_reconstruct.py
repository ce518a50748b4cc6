"""``steer_reconstruct`` in Triton: ``encode``, edits merged into the codes, their decoder rows added up and written.

A TopK SAE has at most k codes for a token. For other SAEs there is room for ROOM codes; a token with more of them is
reconstructed from all features, without codes, by programs that the device starts for nobody else: exact for any
number of active features, and nothing waits for the host.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsesteer._layout import InputNorm
from sparsesteer.kernels.decode import weighted_sum
from sparsesteer.kernels.encode import encode
from sparsesteer.kernels.operands import matrix, weights
from sparsesteer.kernels.rules import (
    BIAS,
    CONSTANT_NORM,
    LAYER_NORM,
    activate,
    column,
    edit,
    encode_tile,
    input_scale,
    load_tile,
    norm_of,
    row_moments,
    weighted_rows,
)
from sparsesteer.kernels.tiling import KEEP_NORM_STEP, ceil_div
from sparsesteer.kernels.tiling_decode import decode_tiling, dense_tiling
from sparsesteer.kernels.write import keep_norm, write_tile

ROOM = 512
_CODES = 128  # codes that a program edits at a time
_MOMENTS_STEP = 1024


@triton.jit
def edited(f, index, features_ptr, rows_ptr, n_edited, search_steps):
    """Codes [N, M] of the features ``index`` [M] after the edits, f_j + d_j(f_j) - d_j(0); 0 stays 0."""
    low = tl.zeros(index.shape, tl.int32)
    high = low + n_edited
    for _ in range(search_steps):  # halves the part of the ascending features that may hold the index
        middle = (low + high) // 2
        above = tl.load(features_ptr + middle, middle < n_edited, other=0) < index
        low = tl.where(above & (low < high), middle + 1, low)
        high = tl.where(above, high, middle)
    found = (low < n_edited) & (tl.load(features_ptr + low, low < n_edited, other=-1) == index)
    rows = low.to(tl.int64)
    change = edit(f, rows_ptr, rows, found) - edit(tl.zeros_like(f), rows_ptr, rows, found)
    return tl.where(f != 0, f + change, f)


@triton.jit(do_not_specialize=["room", "n_edited", "search_steps"])
def edit_codes(
    x_ptr, x_stride, values_ptr, indices_ptr, counts_ptr, features_ptr, rows_ptr, moments_ptr,
    width, room, n_edited, search_steps, CODES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Merges the edits into one token's codes, in place; with ``moments_ptr`` leaves mean and M2 of its x [N, 2]."""
    token = tl.program_id(0).to(tl.int64)
    values_ptr += token * room
    indices_ptr += token * room
    count = tl.minimum(tl.load(counts_ptr + token), room)
    for first in range(0, count, CODES):
        codes = first + tl.arange(0, CODES)
        f = tl.load(values_ptr + codes, codes < count, other=0.0)[None, :]
        index = tl.load(indices_ptr + codes, codes < count, other=-1)
        f = edited(f, index, features_ptr, rows_ptr, n_edited, search_steps)
        tl.store(values_ptr + codes[None, :], f, (codes < count)[None, :])
    if moments_ptr is not None:
        tokens = token + tl.arange(0, 1)
        mean, m2 = row_moments(x_ptr, x_stride, None, 0, tokens, width, STEP)
        tl.store(moments_ptr + tokens * 2, mean)
        tl.store(moments_ptr + tokens * 2 + 1, m2)


@triton.jit(do_not_specialize=["n_tokens", "room", "n_edited", "search_steps"])
def decode_densely(
    x_ptr, x_stride, encoder_ptr, encoder_stride, table_ptr, counts_ptr, features_ptr, rows_ptr,
    decoder_ptr, decoder_stride, sums_ptr, n_tokens, n_features, width, out_width, room, n_edited, search_steps, span,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, INPUT_NORM: tl.constexpr,
):  # fmt: skip
    """For tokens with more than ``room`` codes: what a slice of all features adds to the sums [slices, N, D_out]."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    full = tl.load(counts_ptr + tokens, tokens < n_tokens, other=0) > room
    if tl.max(full.to(tl.int32), axis=0) > 0:
        start = tl.program_id(1) * span
        stop = tl.minimum(start + span, n_features)
        sums_ptr += tl.program_id(1).to(tl.int64) * n_tokens * out_width
        for first in range(start, stop, FEATURES):
            rows = tl.cast(first, tl.int64) + tl.arange(0, FEATURES)
            in_rows = rows < stop
            products, mean, m2 = encode_tile(
                x_ptr, x_stride, None, 0, encoder_ptr, encoder_stride,
                tokens, full, rows, in_rows, 0, width, STEP, INPUT_NORM != 0,
            )  # fmt: skip
            u = input_scale(mean, m2, tl.cast(width, tl.float32), INPUT_NORM)
            z = products * u[:, None] + column(table_ptr, rows, in_rows, BIAS)
            f = tl.where(in_rows[None, :], activate(z, table_ptr, rows, in_rows), 0.0)
            f = edited(f, rows.to(tl.int32), features_ptr, rows_ptr, n_edited, search_steps)
            for left in range(0, out_width, WIDTH):
                columns = left + tl.arange(0, WIDTH)
                in_columns = columns < out_width
                at = sums_ptr + tokens[:, None] * out_width + columns[None, :]
                inside = full[:, None] & in_columns[None, :]
                sums = tl.load(at, inside & (first > start), other=0.0)
                decoder = load_tile(decoder_ptr, decoder_stride, rows, in_rows, columns, in_columns)
                tl.store(at, sums + weighted_rows(f, decoder), inside)
            tl.debug_barrier()  # what one thread wrote another may read


@triton.jit
def denormalized(reconstruction, moments_ptr, tokens, width, INPUT_NORM: tl.constexpr):
    """A reconstruction [N, D] of the normalised x at the scale (and mean) of x."""
    if INPUT_NORM == LAYER_NORM:
        mean, m2 = tl.load(moments_ptr + tokens * 2), tl.load(moments_ptr + tokens * 2 + 1)
        return reconstruction * tl.sqrt(m2 / (width - 1.0))[:, None] + mean[:, None]
    elif INPUT_NORM == CONSTANT_NORM:
        mean, m2 = tl.load(moments_ptr + tokens * 2), tl.load(moments_ptr + tokens * 2 + 1)
        return reconstruction * (norm_of(mean, m2, width) / tl.sqrt(width * 1.0))[:, None]
    else:
        return reconstruction


@triton.jit(do_not_specialize=["n_tokens", "room", "slices"])
def write_reconstruction(
    values_ptr, indices_ptr, counts_ptr, decoder_ptr, decoder_stride, bias_ptr, sums_ptr, moments_ptr,
    token_strength_ptr, token_strength_stride, into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr,
    n_tokens, n_features, width, out_width, room, slices, strength,
    CODES: tl.constexpr, WIDTH: tl.constexpr, INPUT_NORM: tl.constexpr,
):  # fmt: skip
    """One token, one block of the width, from its codes or from the sums of ``decode_densely``."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    in_columns = columns < out_width
    count = tl.load(counts_ptr + token)
    reconstruction = weighted_sum(
        values_ptr, room, indices_ptr, room, decoder_ptr, decoder_stride,
        token, tl.where(count > room, 0, count), n_features, columns, in_columns, CODES,
    )  # fmt: skip
    if sums_ptr is not None:
        if count > room:
            for part in range(0, slices):
                at = (tl.cast(part, tl.int64) * n_tokens + token) * out_width + columns
                reconstruction += tl.load(sums_ptr + at, in_columns, other=0.0)
    reconstruction += tl.load(bias_ptr + columns, in_columns, other=0.0)
    tokens = token + tl.arange(0, 1)
    change = denormalized(reconstruction[None, :], moments_ptr, tokens, tl.cast(width, tl.float32), INPUT_NORM)
    w = tl.load(into_ptr + token * into_stride + columns, in_columns, other=0.0)
    every = tokens >= 0
    write_tile(
        change - w.to(tl.float32)[None, :], every, tl.full([1], 1.0, tl.float32), strength,
        token_strength_ptr, token_strength_stride, None, into_ptr, into_stride, out_ptr, out_stride,
        change_ptr, factor_ptr, tokens, every, columns, in_columns, out_width, False,
    )  # fmt: skip


def steer_reconstruct(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [F, D]
    table: Tensor,  # [F, 10], without edits
    k: int,
    features: Tensor,  # int64 [M], ascending
    rows: Tensor,  # [M, 10], of which the edits are read
    decoder: Tensor,  # [F, D_out]
    bias: Tensor,  # [D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    preserve_norm: bool,
) -> Tensor:
    """``reference.steer_reconstruct``; returns [N, D_out]."""
    out = into.new_empty(into.shape)
    n, out_width = out.shape
    if n == 0:
        return out
    if residual is not None:
        x = x.float() + residual.float()
    n_features = len(encoder)
    room = min(k or ROOM, n_features)
    codes = encode(x, encoder, table, k, room, input_norm)
    call = _Call(
        x=matrix(x),
        encoder=(*matrix(weights(encoder)), table.float().contiguous()),
        codes=codes,
        moments=codes[0].new_empty(n, 2) if input_norm != InputNorm.NONE else None,
        edits=(features.contiguous(), rows.float().contiguous()),
        decoder=matrix(weights(decoder)),
        input_norm=int(input_norm),
    )
    kept = (codes[0].new_empty(n, out_width), codes[0].new_empty(n)) if preserve_norm else (None, None)
    strengths = None if token_strength is None else token_strength.float()[:, None]
    written = (*matrix(into), out, out.stride(0))
    with torch.cuda.device_of(x):
        _edit(call)
        sums = _decode_densely(call, out_width) if k == 0 and room < n_features else None
        tiling = decode_tiling(n, room, out_width, call.decoder[0].nbytes)
        write_reconstruction[n, ceil_div(out_width, tiling.width)](
            *codes, *call.decoder, bias.float().contiguous(), sums, call.moments,
            *matrix(strengths), *written, *kept,
            n, n_features, x.shape[1], out_width, room, 0 if sums is None else len(sums), strength,
            CODES=tiling.codes, WIDTH=tiling.width, INPUT_NORM=call.input_norm, num_warps=tiling.warps,
        )  # fmt: skip
        if preserve_norm:
            keep_norm[(n,)](*written, *kept, out_width, STEP=KEEP_NORM_STEP)
    return out


class _Call(NamedTuple):
    """What several kernels take; matrices each with their stride."""

    x: tuple[Tensor, int]
    encoder: tuple[Tensor, int, Tensor]  # with its table
    codes: tuple[Tensor, Tensor, Tensor]  # values and indices [N, room], counts [N]
    moments: Tensor | None  # [N, 2]
    edits: tuple[Tensor, Tensor]  # features, rows
    decoder: tuple[Tensor, int]
    input_norm: int

    @property
    def search(self) -> tuple[int, int]:
        """How many features are edited, and in how many steps one of them is found."""
        n_edited = len(self.edits[0])
        return n_edited, n_edited.bit_length()


def _edit(call: _Call) -> None:
    values = call.codes[0]
    if len(call.edits[0]) or call.moments is not None:
        edit_codes[(len(values),)](
            *call.x, *call.codes, *call.edits, call.moments, call.x[0].shape[1], values.shape[1], *call.search,
            CODES=_CODES, STEP=_MOMENTS_STEP,
        )  # fmt: skip


def _decode_densely(call: _Call, out_width: int) -> Tensor:
    """Partial sums [slices, N, D_out]; only those of tokens with too many codes are written."""
    n, width = call.x[0].shape
    n_features, room = len(call.encoder[0]), call.codes[0].shape[1]
    tiling = dense_tiling(n, n_features)
    slices = ceil_div(n_features, tiling.span)
    sums = call.codes[0].new_empty(slices, n, out_width)
    decode_densely[ceil_div(n, tiling.tokens), slices](
        *call.x, *call.encoder, call.codes[2], *call.edits, *call.decoder, sums,
        n, n_features, width, out_width, room, *call.search, tiling.span,
        TOKENS=tiling.tokens, FEATURES=tiling.features, STEP=tiling.step, WIDTH=tiling.width,
        INPUT_NORM=call.input_norm, **tiling.options,
    )  # fmt: skip
    return sums
