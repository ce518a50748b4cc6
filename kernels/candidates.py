"""Streams an encoder past a batch of tokens and writes down, for every token, the features that may be chosen.

All kernels multiply tiles of the same sizes in the same order: equal encoder rows give equal bits, wherever they are.
"""

import triton
import triton.language as tl

from sparsesteer.kernels.rules import activate, encode_tile, input_scale, output_scale, row_moments
from sparsesteer.kernels.select import LOWEST, move_to_front, ordered, pack, reached_by, reaches

WIDEST_APPEND = tl.constexpr(32)  # features whose numbers and places fit in registers, for a tile of tokens


@triton.jit
def token_scales(
    x_ptr, x_stride, residual_ptr, residual_stride, input_scale_ptr, output_scale_ptr, width,
    INPUT_NORM: tl.constexpr, SCALE_RULE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The factors u and r of one token; r without GAP_FILL, which asks for the edits."""
    tokens = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    mean, m2 = row_moments(x_ptr, x_stride, residual_ptr, residual_stride, tokens, width, STEP)
    width = tl.cast(width, tl.float32)
    tl.store(input_scale_ptr + tokens, input_scale(mean, m2, width, INPUT_NORM))
    tl.store(output_scale_ptr + tokens, output_scale(mean, m2, width, mean, 0.0, SCALE_RULE))


@triton.jit
def pre_activations(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, scale_ptr, bias_ptr, bias_stride,
    tokens, in_tokens, rows, in_rows, width, STEP: tl.constexpr,
):  # fmt: skip
    """z [N, M] of a tile."""
    products, _, _ = encode_tile(
        x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
        tokens, in_tokens, rows, in_rows, 0, width, STEP, False,
    )  # fmt: skip
    return scaled_and_biased(products, scale_ptr, bias_ptr, bias_stride, tokens, in_tokens, rows, in_rows)


@triton.jit
def scaled_and_biased(products, scale_ptr, bias_ptr, bias_stride, tokens, in_tokens, rows, in_rows):
    """z [N, M] from products with rows of the encoder."""
    bias = tl.load(bias_ptr + rows * bias_stride, in_rows, other=0.0)[None, :]
    if scale_ptr is None:
        return products + bias
    else:  # one instruction by name: a compiler that fuses here and not there would break ties
        return tl.fma(products, tl.load(scale_ptr + tokens, in_tokens, other=0.0)[:, None], bias)


@triton.jit(do_not_specialize=["n_tokens"])
def write_sample(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, scale_ptr, bias_ptr, bias_stride,
    packed_ptr, n_tokens, n_features, width, capacity, every,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """All pre-activations of every ``every``-th block of features, packed, block after block."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1).to(tl.int64) * every * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = tokens < n_tokens, rows < n_features
    z = pre_activations(
        x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, scale_ptr, bias_ptr, bias_stride,
        tokens, in_tokens, rows, in_rows, width, STEP,
    )  # fmt: skip
    packed = tl.where(in_rows[None, :], pack(ordered(z), rows[None, :]), LOWEST)
    at = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = in_tokens[:, None] & (at < capacity)[None, :]
    tl.store(packed_ptr + tokens[:, None] * capacity + at[None, :], packed, inside)


@triton.jit
def candidates_of(z, rows_ptr, rows, in_rows, floor):
    """Ordered numbers of a tile and who is a candidate: by the floor, or with a table of rows who is active."""
    if rows_ptr is None:
        key = ordered(z)
        return key, reaches(key, rows[None, :], floor) & in_rows[None, :]
    else:
        f = activate(z, rows_ptr, rows, in_rows)
        return ordered(f), (f != 0) & in_rows[None, :]


@triton.jit
def append_candidates(z, tokens, in_tokens, rows, in_rows, rows_ptr, floor, packed_ptr, count_ptr, capacity):
    """Appends the candidates of a tile to those of their tokens, as far as there is room, and counts them all."""
    key, chosen = candidates_of(z, rows_ptr, rows, in_rows, floor)
    chosen = chosen & in_tokens[:, None]
    found = tl.sum(chosen.to(tl.int32), axis=1)
    if tl.max(found, axis=0) > 0:
        first = tl.atomic_add(count_ptr + tokens, found, in_tokens & (found > 0), sem="relaxed")
        # int32 offsets, which the bound of the scratch allows, and nothing packed before: 64-bit numbers would spill
        at = first[:, None] + tl.cumsum(chosen.to(tl.int32), axis=1) - 1
        chosen = chosen & (at < capacity)
        at += tokens.to(tl.int32)[:, None] * capacity
        tl.store(packed_ptr + at, pack(key, rows[None, :]), chosen)


@triton.jit
def halves(z):
    """The first and the second half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(z, [z.shape[0], 2, z.shape[1] // 2]), (0, 2, 1)))


@triton.jit
def append_halves(z, tokens, in_tokens, start, n_features, rows_ptr, floor, packed_ptr, count_ptr, capacity):
    """``append_candidates`` of the features from ``start``, in two parts, which need fewer registers than one."""
    low, high = halves(z)
    rows = start + tl.arange(0, z.shape[1] // 2)
    found = (rows_ptr, floor, packed_ptr, count_ptr, capacity)
    append_candidates(low, tokens, in_tokens, rows, rows < n_features, *found)
    rows += z.shape[1] // 2
    append_candidates(high, tokens, in_tokens, rows, rows < n_features, *found)


@triton.jit(do_not_specialize=["n_tokens"])
def write_candidates(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, scale_ptr, bias_ptr, bias_stride,
    rows_ptr, floor_ptr, packed_ptr, count_ptr, n_tokens, n_features, width, capacity, every,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Candidates of every block that is not in the sample (``every`` 0: there is none), and their true number."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    block = tl.program_id(1).to(tl.int64)
    if every > 0:
        block += block // (every - 1) + 1
    rows = block * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = tokens < n_tokens, rows < n_features
    z = pre_activations(
        x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, scale_ptr, bias_ptr, bias_stride,
        tokens, in_tokens, rows, in_rows, width, STEP,
    )  # fmt: skip
    floor = tl.full([TOKENS], LOWEST, tl.int64)
    if rows_ptr is None:
        floor = tl.load(floor_ptr + tokens, in_tokens, other=LOWEST)
    found = (rows_ptr, floor[:, None], packed_ptr, count_ptr, capacity)
    if ROWS <= WIDEST_APPEND:
        append_candidates(z, tokens, in_tokens, rows, in_rows, *found)
    elif ROWS == 2 * WIDEST_APPEND:
        append_halves(z, tokens, in_tokens, block * ROWS, n_features, *found)
    else:
        low, high = halves(z)
        append_halves(low, tokens, in_tokens, block * ROWS, n_features, *found)
        append_halves(high, tokens, in_tokens, block * ROWS + ROWS // 2, n_features, *found)


@triton.jit
def append_to_best(z, start, held, floor, n_features, rows_ptr, packed_ptr, want, capacity, BLOCK: tl.constexpr):
    """Appends the candidates among one token's z [1, M] to the ``held`` ones; a full buffer is cut to the best.

    Returns the new ``held`` and ``floor``.
    """
    M: tl.constexpr = z.shape[1]
    rows = start + tl.arange(0, M)
    key, chosen = candidates_of(z, rows_ptr, rows, rows < n_features, floor)
    packed = tl.reshape(pack(key, rows[None, :]), [M])
    chosen = tl.where(packed >= floor, tl.reshape(chosen.to(tl.int32), [M]), 0)
    found = tl.sum(chosen, axis=0)
    if held + found > capacity:
        floor = reached_by(packed_ptr, held, want, BLOCK)
        held = move_to_front(packed_ptr, held, floor, BLOCK)  # and a block more always has room
    tl.store(packed_ptr + held + tl.cumsum(chosen, axis=0) - 1, packed, chosen != 0)
    tl.debug_barrier()  # what one thread wrote another may read
    return held + found, floor


@triton.jit
def recompute_candidates(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride, scale_ptr, bias_ptr, bias_stride,
    rows_ptr, floor_ptr, packed_ptr, count_ptr, n_features, width, want, capacity,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For a token with more candidates than room: all features again, the buffer cut to the best when it is full.

    The token has a tile for itself, of the size of the stream's: so its numbers are the same to the bit.
    """
    token = tl.program_id(0).to(tl.int64)
    if tl.load(count_ptr + token) > capacity:
        packed_ptr += token * capacity
        tokens = token + tl.arange(0, TOKENS)
        own = tokens == token
        floor = tl.full([], LOWEST, tl.int64)
        if rows_ptr is None:
            floor = tl.load(floor_ptr + token)
        buffer = (n_features, rows_ptr, packed_ptr, want, capacity)
        held = 0
        for first in range(0, n_features, ROWS):
            start = tl.cast(first, tl.int64)
            rows = start + tl.arange(0, ROWS)
            z = pre_activations(
                x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
                scale_ptr, bias_ptr, bias_stride, tokens, own, rows, rows < n_features, width, STEP,
            )  # fmt: skip
            z = tl.sum(tl.where(own[:, None], z, 0.0), axis=0)[None, :]
            if ROWS <= 2 * WIDEST_APPEND:
                held, floor = append_to_best(z, start, held, floor, *buffer, BLOCK)
            else:
                low, high = halves(z)
                held, floor = append_to_best(low, start, held, floor, *buffer, BLOCK)
                held, floor = append_to_best(high, start + ROWS // 2, held, floor, *buffer, BLOCK)
        for first in range(held, capacity, BLOCK):
            at = first + tl.arange(0, BLOCK)
            tl.store(packed_ptr + at, tl.full([BLOCK], LOWEST, tl.int64), at < capacity)
