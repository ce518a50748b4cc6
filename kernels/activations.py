"""``activations`` in Triton: the shrink of ``steer``, cut as there, and then the activation instead of an edit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsesteer._layout import InputNorm
from sparsesteer.kernels.operands import matrix, weights
from sparsesteer.kernels.rules import BIAS, activate, column, input_scale, load_tile, moments_of_parts
from sparsesteer.kernels.steer import shrink_split
from sparsesteer.kernels.tiling import ceil_div, steer_tiling
from sparsesteer.kernels.tunings import tuned


@triton.jit(do_not_specialize=["n_tokens"])
def activate_split(
    products_ptr, moments_ptr, rows_ptr, f_ptr, n_tokens, n_rows, width, split_width,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr, MOMENTS: tl.constexpr, INPUT_NORM: tl.constexpr,
):  # fmt: skip
    """Adds up what ``shrink_split`` left, as ``expand_split`` does, and writes f [N, M]."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = tokens < n_tokens, rows < n_rows
    mean, m2 = moments_of_parts(moments_ptr, tokens, in_tokens, n_tokens, width, split_width, SPLITS, MOMENTS)
    u = input_scale(mean, m2, tl.cast(width, tl.float32), INPUT_NORM)
    products = tl.zeros([TOKENS, ROWS], tl.float32)
    for split in tl.static_range(SPLITS):
        at = tl.cast(n_tokens, tl.int64) * split + tokens
        products += load_tile(products_ptr, n_rows, at, in_tokens, rows, in_rows)
    f = activate(products * u[:, None] + column(rows_ptr, rows, in_rows, BIAS), rows_ptr, rows, in_rows)
    tl.store(f_ptr + tokens[:, None] * n_rows + rows[None, :], f, in_tokens[:, None] & in_rows[None, :])


def activations(
    x: Tensor,  # [N, D]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [M, D]
    rows: Tensor,  # [M, 10]
    input_norm: int,
) -> Tensor:
    """``reference.activations``; returns [N, M] in fp32."""
    n, width = x.shape
    m = len(encoder)
    rows = rows.float().contiguous()
    f = rows.new_empty(n, m)
    if n == 0 or m == 0:
        return f
    moments = input_norm != InputNorm.NONE
    sizes = n, m, width, width
    tiling = tuned("steer", steer_tiling(*sizes), sizes, x.device)
    products = rows.new_empty(tiling.splits, n, m)
    parts = rows.new_empty(2, tiling.splits, n) if moments else None
    tiles, blocks = ceil_div(n, tiling.tokens), ceil_div(m, tiling.shrink_rows)
    cut = {"TOKENS": tiling.tokens, "ROWS": tiling.shrink_rows, "SPLITS": tiling.splits, "MOMENTS": moments}
    with torch.cuda.device_of(x):
        shrink_split[tiles, blocks, tiling.splits](
            *matrix(x), *matrix(residual), *matrix(weights(encoder)), products, parts, n, m, width, tiling.split_width,
            STEP=tiling.shrink_step, **cut, **tiling.options,
        )  # fmt: skip
        activate_split[tiles, blocks](
            products, parts, rows, f, n, m, width, tiling.split_width,
            INPUT_NORM=int(input_norm), **cut, **tiling.options,
        )  # fmt: skip
    return f
