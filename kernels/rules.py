"""The rules of ``sparsesteer._layout`` on tiles of tokens x rows: device functions that the kernels share.

All arithmetic is fp32: values are widened right after they are loaded, except where two bf16 operands meet.
"""

import triton
import triton.language as tl

from sparsesteer._layout import LAYER_NORM_EPS, N_COLUMNS, Column, InputNorm, OutputScale

COLUMNS = tl.constexpr(N_COLUMNS)
BIAS = tl.constexpr(int(Column.BIAS))
THRESHOLD = tl.constexpr(int(Column.THRESHOLD))
SLOPE = tl.constexpr(int(Column.SLOPE))
SHIFT = tl.constexpr(int(Column.SHIFT))
FLOOR = tl.constexpr(int(Column.FLOOR))
C0 = tl.constexpr(int(Column.C0))
C1 = tl.constexpr(int(Column.C1))
C2 = tl.constexpr(int(Column.C2))
KNOT = tl.constexpr(int(Column.KNOT))
GATE = tl.constexpr(int(Column.GATE))
LAYER_NORM = tl.constexpr(int(InputNorm.LAYER_NORM))
CONSTANT_NORM = tl.constexpr(int(InputNorm.CONSTANT_NORM))
STD = tl.constexpr(int(OutputScale.STD))
RMS = tl.constexpr(int(OutputScale.RMS))
NORM = tl.constexpr(int(OutputScale.NORM))
GAP_FILL = tl.constexpr(int(OutputScale.GAP_FILL))
EPS = tl.constexpr(LAYER_NORM_EPS)
MOST_SPLITS = tl.constexpr(32)  # of a width, over several programs


@triton.jit
def matmul(a, b):
    """a [N, K] @ b [K, M] in fp32; bf16 operands are multiplied as they are, which loses nothing."""
    if a.shape[0] == 1:
        return tl.sum(tl.trans(a.to(tl.float32)) * b.to(tl.float32), axis=0)[None, :]
    elif a.dtype == b.dtype and a.dtype.primitive_bitwidth == 16:
        return tl.dot(a, b)
    else:
        # one tf32 product keeps 10 bits of the mantissa, three keep about all of them
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")


@triton.jit
def weighted_rows(d, decoder):
    """d [N, M] @ decoder [M, D]; beside 16-bit rows d enters as the sum of two 16-bit numbers."""
    if decoder.dtype.primitive_bitwidth == 16 and d.shape[0] > 1:
        high = d.to(decoder.dtype)
        low = (d - high.to(tl.float32)).to(decoder.dtype)
        return matmul(high, decoder) + matmul(low, decoder)
    else:
        return matmul(d, decoder)


@triton.jit
def merge_moments(count, mean, m2, part_count, part_mean, part_m2):
    """Mean and sum of squared deviations of two sets together (Chan et al.); ``count`` may be 0."""
    share = part_count / (count + part_count)
    gap = part_mean - mean
    return mean + gap * share, m2 + part_m2 + gap * gap * (count * share)


@triton.jit
def moments_of_parts(
    moments_ptr, tokens, in_tokens, n_tokens, width, split_width, SPLITS: tl.constexpr, MOMENTS: tl.constexpr
):
    """Mean and M2 [N] of whole rows, from those of the parts of the width, [2, splits, N]; zeros without MOMENTS."""
    mean = tl.zeros([tokens.shape[0]], tl.float32)
    m2 = tl.zeros([tokens.shape[0]], tl.float32)
    if MOMENTS:  # all parts at once: one after the other, their loads would fill the registers
        part = tl.arange(0, MOST_SPLITS)
        inside = in_tokens[:, None] & (part < SPLITS)[None, :]
        at = tokens[:, None] + tl.cast(n_tokens, tl.int64) * part[None, :]
        part_mean = tl.load(moments_ptr + at, inside, other=0.0)
        part_m2 = tl.load(moments_ptr + tl.cast(n_tokens, tl.int64) * SPLITS + at, inside, other=0.0)
        start = tl.minimum(part * split_width, width)
        count = (tl.minimum((part + 1) * split_width, width) - start).to(tl.float32)[None, :]
        mean = tl.sum(count * part_mean, axis=1) / width
        gap = part_mean - mean[:, None]
        m2 = tl.sum(part_m2 + count * gap * gap, axis=1)
    return mean, m2


@triton.jit
def norm_of(mean, m2, width):
    """||x|| from the moments of x."""
    return tl.sqrt(m2 + width * mean * mean)


@triton.jit
def input_scale(mean, m2, width, INPUT_NORM: tl.constexpr):
    """The factor u of a token's products."""
    if INPUT_NORM == LAYER_NORM:
        return 1.0 / (tl.sqrt(m2 / (width - 1.0)) + EPS)
    elif INPUT_NORM == CONSTANT_NORM:
        norm = norm_of(mean, m2, width)
        return tl.where(norm > 0, tl.sqrt(width * 1.0) / norm, 0.0)
    else:
        return tl.full(mean.shape, 1.0, tl.float32)


@triton.jit
def output_scale(mean, m2, width, total, gap, SCALE_RULE: tl.constexpr):
    """The factor r of a token's edit; ``total`` is the sum of its d."""
    if SCALE_RULE == STD:
        return tl.sqrt(m2 / (width - 1.0))
    elif SCALE_RULE == RMS:
        return norm_of(mean, m2, width) / tl.sqrt(width * 1.0)
    elif SCALE_RULE == NORM:
        return norm_of(mean, m2, width)
    elif SCALE_RULE == GAP_FILL:
        return tl.where(total != 0, gap / total, 0.0)
    else:
        return tl.full(mean.shape, 1.0, tl.float32)


@triton.jit
def column(rows_ptr, rows, in_rows, COLUMN: tl.constexpr):
    """One column of the row table as [1, M]."""
    return tl.load(rows_ptr + rows * COLUMNS + COLUMN, mask=in_rows, other=0.0)[None, :]


@triton.jit
def activate(z, rows_ptr, rows, in_rows):
    """Activations f [N, M] of pre-activations z [N, M]."""
    f = column(rows_ptr, rows, in_rows, SLOPE) * z + column(rows_ptr, rows, in_rows, SHIFT)
    f = tl.maximum(f, column(rows_ptr, rows, in_rows, FLOOR))
    return tl.where(z > column(rows_ptr, rows, in_rows, THRESHOLD), f, 0.0)


@triton.jit
def edit(f, rows_ptr, rows, in_rows):
    """d [N, M], the change of each activation f [N, M]; 0 outside the table."""
    d = column(rows_ptr, rows, in_rows, C0) + column(rows_ptr, rows, in_rows, C1) * f
    d += column(rows_ptr, rows, in_rows, C2) * tl.maximum(f - column(rows_ptr, rows, in_rows, KNOT), 0.0)
    gated_off = (column(rows_ptr, rows, in_rows, GATE) != 0) & (f <= 0)
    return tl.where(gated_off | ~in_rows[None, :], 0.0, d)


@triton.jit
def edit_deltas(products, u, rows_ptr, rows, in_rows):
    """d [N, M] from the products E . x [N, M] and the input scales u [N]."""
    z = products * u[:, None] + column(rows_ptr, rows, in_rows, BIAS)
    return edit(activate(z, rows_ptr, rows, in_rows), rows_ptr, rows, in_rows)


@triton.jit
def load_tile(ptr, stride, tokens, in_tokens, columns, in_columns):
    """A tile [N, D] of a matrix with unit stride along D; zeros outside."""
    return tl.load(
        ptr + tokens[:, None] * stride + columns[None, :], mask=in_tokens[:, None] & in_columns[None, :], other=0.0
    )


@triton.jit
def row_moments(x_ptr, x_stride, residual_ptr, residual_stride, tokens, width, STEP: tl.constexpr):
    """Mean and M2 [N] of whole rows of x (+ residual)."""
    mean = tl.zeros([tokens.shape[0]], tl.float32)
    m2 = tl.zeros([tokens.shape[0]], tl.float32)
    for first in range(0, width, STEP):
        columns = first + tl.arange(0, STEP)
        inside = columns < width
        x = load_tile(x_ptr, x_stride, tokens, tokens >= 0, columns, inside).to(tl.float32)
        if residual_ptr is not None:
            x += load_tile(residual_ptr, residual_stride, tokens, tokens >= 0, columns, inside).to(tl.float32)
        count = tl.minimum(width - first, STEP) * 1.0
        part_mean = tl.sum(x, axis=1) / count
        centred = tl.where(inside[None, :], x - part_mean[:, None], 0.0)
        mean, m2 = merge_moments(first * 1.0, mean, m2, count, part_mean, tl.sum(centred * centred, axis=1))
    return mean, m2


@triton.jit
def encode_tile(
    x_ptr, x_stride, residual_ptr, residual_stride, encoder_ptr, encoder_stride,
    tokens, in_tokens, rows, in_rows, start, stop, STEP: tl.constexpr, MOMENTS: tl.constexpr,
):  # fmt: skip
    """Products E . x [N, M] over the columns from start to stop, and mean and M2 [N] of x there."""
    products = tl.zeros([tokens.shape[0], rows.shape[0]], tl.float32)
    mean = tl.zeros([tokens.shape[0]], tl.float32)
    m2 = tl.zeros([tokens.shape[0]], tl.float32)
    for first in range(start, stop, STEP):
        columns = first + tl.arange(0, STEP)
        inside = columns < stop
        x = load_tile(x_ptr, x_stride, tokens, in_tokens, columns, inside)
        if residual_ptr is not None:
            residual = load_tile(residual_ptr, residual_stride, tokens, in_tokens, columns, inside)
            x = x.to(tl.float32) + residual.to(tl.float32)
        if MOMENTS:
            count = tl.minimum(stop - first, STEP) * 1.0
            part_mean = tl.sum(x.to(tl.float32), axis=1) / count
            centred = tl.where(inside[None, :], x.to(tl.float32) - part_mean[:, None], 0.0)
            part_m2 = tl.sum(centred * centred, axis=1)
            mean, m2 = merge_moments((first - start) * 1.0, mean, m2, count, part_mean, part_m2)
        encoder = load_tile(encoder_ptr, encoder_stride, rows, in_rows, columns, inside)
        products += matmul(x, tl.trans(encoder))
    return products, mean, m2
