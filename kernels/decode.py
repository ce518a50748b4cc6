"""``decode`` in Triton: every program gathers the decoder rows of one token, for one block of the width.

A row of codes is read as one tile after the other, so that many decoder rows are on their way at a time. One token
fills a GPU by narrow blocks of the width. Sums run in a fixed order: same input, same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsesteer.kernels.operands import matrix, weights
from sparsesteer.kernels.rules import load_tile
from sparsesteer.kernels.tiling import ceil_div
from sparsesteer.kernels.tiling_decode import decode_tiling


@triton.jit
def weighted_sum(
    values_ptr, values_stride, indices_ptr, indices_stride, decoder_ptr, decoder_stride,
    token, n_codes, n_features, columns, in_columns, CODES: tl.constexpr,
):  # fmt: skip
    """sum_k values_k decoder[indices_k] over the first ``n_codes`` codes of a token, [D].

    Codes whose index is not a feature are left out: a device cannot raise an error, but nothing outside is read.
    """
    sums = tl.zeros([CODES, columns.shape[0]], tl.float32)
    for first in range(0, n_codes, CODES):
        codes = first + tl.arange(0, CODES)
        index = tl.load(indices_ptr + token * indices_stride + codes, codes < n_codes, other=-1)
        value = tl.load(values_ptr + token * values_stride + codes, codes < n_codes, other=0.0).to(tl.float32)
        real = (index >= 0) & (index < n_features)
        rows = load_tile(decoder_ptr, decoder_stride, index.to(tl.int64), real, columns, in_columns)
        sums += tl.where(real, value, 0.0)[:, None] * rows.to(tl.float32)
    return tl.sum(sums, axis=0)


@triton.jit(do_not_specialize=["n_codes"])
def decode_codes(
    values_ptr, values_stride, indices_ptr, indices_stride, decoder_ptr, decoder_stride, bias_ptr,
    out_ptr, out_stride, n_codes, n_features, width, CODES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One token's reconstruction, one block of the width."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    in_columns = columns < width
    sums = weighted_sum(
        values_ptr, values_stride, indices_ptr, indices_stride, decoder_ptr, decoder_stride,
        token, n_codes, n_features, columns, in_columns, CODES,
    )  # fmt: skip
    sums += tl.load(bias_ptr + columns, in_columns, other=0.0)
    tl.store(out_ptr + token * out_stride + columns, sums, in_columns)


def decode(
    values: Tensor,  # [N, K]
    indices: Tensor,  # int32 [N, K], -1 is padding
    decoder: Tensor,  # [F, D_out]
    bias: Tensor,  # [D_out]
) -> Tensor:
    """``reference.decode``; returns [N, D_out] in the dtype of ``values``."""
    n, k = values.shape
    n_features, width = decoder.shape
    out = values.new_empty(n, width)
    if n == 0:
        return out
    decoder = weights(decoder)
    tiling = decode_tiling(n, k, width, decoder.nbytes)
    with torch.cuda.device_of(values):
        decode_codes[n, ceil_div(width, tiling.width)](
            *matrix(values), *matrix(indices), *matrix(decoder), bias.float().contiguous(),
            out, out.stride(0), k, n_features, width,
            CODES=tiling.codes, WIDTH=tiling.width, num_warps=tiling.warps,
        )  # fmt: skip
    return out
