"""``steer_topk`` in Triton: the edited features first, then their ranks, then ``steer``'s last step.

An edited feature is active if its z is positive and fewer than k features come before it. For few edited features
the encoder streams past and all that come before are counted; for many the k-th largest of all is found as ``encode``
does. Either way the stream multiplies tiles of one size in one order, so that equal rows of the encoder are equal to
the bit, edited or not. No pre-activation of another feature is written to memory but those of a sample.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsesteer._layout import OutputScale
from sparsesteer.kernels.candidates import pre_activations, scaled_and_biased
from sparsesteer.kernels.encode import SELECT_OPTIONS, Stream, find_candidates, scales, stream_of
from sparsesteer.kernels.expand import Call, call_of, expand_edits, keep_length, new_edits
from sparsesteer.kernels.rules import activate, edit, encode_tile, load_tile
from sparsesteer.kernels.select import keep_best, ordered, reaches
from sparsesteer.kernels.steer import steer
from sparsesteer.kernels.tiling import SteerTiling, ceil_div, steer_tiling
from sparsesteer.kernels.tiling_encode import COUNT_AT_ONCE, SELECT_BLOCK, most_counted, select_tiling


@triton.jit(do_not_specialize=["n_tokens"])
def edited_pre_activations(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, scale_ptr, bias_ptr, bias_stride,
    features_ptr, z_ptr, n_tokens, n_rows, width,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """z [N, M] of the edited features, in the tiles of the stream."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    at = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = tokens < n_tokens, at < n_rows
    rows = tl.load(features_ptr + at, in_rows, other=0)
    products, _, _ = encode_tile(
        x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
        tokens, in_tokens, rows, in_rows, 0, width, STEP, False,
    )  # fmt: skip
    if ROWS < 128:  # tf32 products leave no registers in which to keep them until here
        rows = tl.load(features_ptr + at, in_rows, other=0, volatile=True)
    z = scaled_and_biased(products, scale_ptr, bias_ptr, bias_stride, tokens, in_tokens, rows, in_rows)
    tl.store(z_ptr + tokens[:, None] * n_rows + at[None, :], z, in_tokens[:, None] & in_rows[None, :])


@triton.jit
def still_open(z_ptr, before_ptr, n_rows, k, tokens, in_tokens, ROWS: tl.constexpr):
    """Whether any edited feature of a tile of tokens may still be among the first k: then counting goes on."""
    undecided = 0
    for first in range(0, n_rows, ROWS):
        at = first + tl.arange(0, ROWS)
        inside = in_tokens[:, None] & (at < n_rows)[None, :]
        at = tokens[:, None] * n_rows + at[None, :]
        z = tl.load(z_ptr + at, inside, other=0.0)
        before = tl.load(before_ptr + at, inside, other=0)
        undecided += tl.sum(tl.sum(((z > 0) & (before < k)).to(tl.int32), axis=1), axis=0)
    return undecided > 0


@triton.jit(do_not_specialize=["n_tokens"])
def count_before(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, scale_ptr, bias_ptr, bias_stride,
    features_ptr, z_ptr, before_ptr, n_tokens, n_rows, n_features, width, k,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Adds to ``before`` [N, M] how many of a block of features come before each edited one.

    A program whose counts have all reached k by the time it starts has nothing to add that would matter.
    """
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    in_tokens = tokens < n_tokens
    if still_open(z_ptr, before_ptr, n_rows, k, tokens, in_tokens, 16):
        rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        in_rows = rows < n_features
        z = pre_activations(
            x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
            scale_ptr, bias_ptr, bias_stride, tokens, in_tokens, rows, in_rows, width, STEP,
        )  # fmt: skip
        for first in range(0, n_rows, AT_ONCE):
            # one of the two axes is 1: many edited features beside one token, or one beside many tokens
            at = tl.reshape((first + tl.arange(0, AT_ONCE))[None, :] + tokens[:, None] * 0, [TOKENS * AT_ONCE])
            token = tl.reshape(tokens[:, None] + tl.arange(0, AT_ONCE)[None, :] * 0, [TOKENS * AT_ONCE])
            inside = (at < n_rows) & (token < n_tokens)
            own = tl.load(z_ptr + token * n_rows + at, inside, other=0.0)
            feature = tl.load(features_ptr + at, inside, other=0)
            earlier = (z > own[:, None]) | ((z == own[:, None]) & (rows[None, :] < feature[:, None]))
            found = tl.sum((earlier & in_rows[None, :]).to(tl.int32), axis=1)
            tl.atomic_add(before_ptr + token * n_rows + at, found, inside & (own > 0) & (found > 0), sem="relaxed")


@triton.jit
def ranked_activations(
    z_ptr, before_ptr, floor_ptr, features_ptr, rows_ptr, tokens, in_tokens, rows, in_rows, n_rows, k,
):  # fmt: skip
    """f [N, M] by the counts of what comes before, or by the k-th largest of all; with neither by the rows alone."""
    z = load_tile(z_ptr, n_rows, tokens, in_tokens, rows, in_rows)
    f = activate(z, rows_ptr, rows, in_rows)
    if before_ptr is not None:
        before = load_tile(before_ptr, n_rows, tokens, in_tokens, rows, in_rows)
        f = tl.where((z > 0) & (before < k), f, 0.0)
    elif floor_ptr is not None:
        feature = tl.load(features_ptr + rows, in_rows, other=0)
        floor = tl.load(floor_ptr + tokens, in_tokens, other=0)
        f = tl.where((z > 0) & reaches(ordered(z), feature[None, :], floor[:, None]), f, 0.0)
    return f


@triton.jit(do_not_specialize=["n_tokens"])
def edit_active(
    z_ptr, before_ptr, floor_ptr, features_ptr, rows_ptr, d_ptr, live_ptr, total_ptr, n_tokens, n_rows, k,
    TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Finished edits d [N, M], as ``shrink_whole`` leaves them."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = tokens < n_tokens, rows < n_rows
    f = ranked_activations(
        z_ptr, before_ptr, floor_ptr, features_ptr, rows_ptr, tokens, in_tokens, rows, in_rows, n_rows, k
    )
    d = edit(f, rows_ptr, rows, in_rows)
    tl.store(d_ptr + tokens[:, None] * n_rows + rows[None, :], d, in_tokens[:, None] & in_rows[None, :])
    at = tl.program_id(1).to(tl.int64) * n_tokens + tokens
    tl.store(live_ptr + at, tl.sum((d != 0).to(tl.int32), axis=1), in_tokens)
    tl.store(total_ptr + at, tl.sum(d, axis=1), in_tokens)


def steer_topk(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [F, D]
    encoder_bias: Tensor,  # [F]
    features: Tensor,  # int64 [M]
    k: int,
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
    """``reference.steer_topk``; returns [N, D_out]."""
    amount = (token_strength, strength, input_norm, scale_rule, gap, preserve_norm)
    if len(features) == 0:
        return steer(x, into, residual, encoder[:0], decoder, rows, delta_bias, *amount)
    out = into.new_empty(into.shape)
    if len(x) == 0:
        return out
    with torch.cuda.device_of(x):
        call = call_of(x, into, residual, encoder[:0], decoder, rows, delta_bias, *amount, out)
        u, r = None, call.rows.new_ones(len(x))
        if call.moments:
            u, r = scales(
                x, residual, input_norm, OutputScale.ONE if scale_rule == OutputScale.GAP_FILL else scale_rule
            )
        stream = stream_of(x, residual, encoder, u, encoder_bias.float())
        tiling = steer_tiling(*call.sizes)
        expand_edits(call, tiling, _edits(stream, call, features.contiguous(), k, r, tiling))
        keep_length(call)
    return out


def _edits(
    stream: Stream, call: Call, features: Tensor, k: int, r: Tensor, tiling: SteerTiling
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d [N, M] and what belongs to it, as ``expand_edits`` takes it."""
    n, m, _, _ = call.sizes
    z, before, floor = ranked(stream, features, k)
    d, live, total, _ = new_edits(call, tiling)
    edit_active[ceil_div(n, tiling.tokens), len(live)](
        z, before, floor, features, call.rows, d, live, total, n, m, k,
        TOKENS=tiling.tokens, ROWS=tiling.shrink_rows, **tiling.options,
    )  # fmt: skip
    return d, live, total, r


def ranked(stream: Stream, features: Tensor, k: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """z [N, M] of the features and what tells which are active: how many come before each, int32 [N, M], or the k-th
    largest of all, int64 [N]; neither for k = 0."""
    n, n_features, width = stream.sizes
    m = len(features)
    z = torch.empty(n, m, dtype=torch.float32, device=stream.x.device)
    edited_pre_activations[ceil_div(n, stream.tiling.tokens), ceil_div(m, stream.tiling.rows)](
        *stream.operands, features, z, n, m, width, **stream.tiling.blocks, **stream.tiling.options
    )
    if k == 0:
        return z, None, None
    if k >= n_features or m <= most_counted(n):
        return z, _ranks(stream, features, z, k), None
    return z, None, _kth_largest(stream, k)


def _ranks(stream: Stream, features: Tensor, z: Tensor, k: int) -> Tensor:
    """How many features come before each edited one, int32 [N, M]; at least k where there are k or more."""
    n, n_features, width = stream.sizes
    before = torch.zeros_like(z, dtype=torch.int32)
    if k < n_features:
        tiling = stream.tiling
        count_before[ceil_div(n, tiling.tokens), ceil_div(n_features, tiling.rows)](
            *stream.operands, features, z, before, n, z.shape[1], n_features, width, k,
            AT_ONCE=COUNT_AT_ONCE if tiling.tokens == 1 else 1, **tiling.blocks, **tiling.options,
        )  # fmt: skip
    return before


def _kth_largest(stream: Stream, k: int) -> Tensor:
    """The k-th largest pre-activation of each token with its feature, packed, int64 [N]; k is below F."""
    select = select_tiling(*stream.sizes[:2], k, k, stream.tiling)
    floors = []
    for start in range(0, len(stream.x), select.chunk):
        candidates = find_candidates(stream.part(slice(start, start + select.chunk)), None, k, select)
        keep_best[(len(candidates.packed),)](
            candidates.packed, candidates.found, candidates.floor, 0, k, select.capacity,
            SAMPLED=False, BLOCK=SELECT_BLOCK, **SELECT_OPTIONS,
        )  # fmt: skip
        floors.append(candidates.floor)
    return torch.cat(floors)
