"""``activations_topk`` in Triton: the features and their ranks as ``steer_topk`` finds them, and then no edit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsesteer._layout import OutputScale
from sparsesteer.kernels.encode import scales, stream_of
from sparsesteer.kernels.steer_topk import ranked, ranked_activations
from sparsesteer.kernels.tiling import ceil_div, steer_tiling


@triton.jit(do_not_specialize=["n_tokens"])
def write_active(
    z_ptr, before_ptr, floor_ptr, features_ptr, rows_ptr, f_ptr, n_tokens, n_rows, k,
    TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """f [N, M]."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = tokens < n_tokens, rows < n_rows
    f = ranked_activations(
        z_ptr, before_ptr, floor_ptr, features_ptr, rows_ptr, tokens, in_tokens, rows, in_rows, n_rows, k
    )
    tl.store(f_ptr + tokens[:, None] * n_rows + rows[None, :], f, in_tokens[:, None] & in_rows[None, :])


def activations_topk(
    x: Tensor,  # [N, D]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [F, D]
    encoder_bias: Tensor,  # [F]
    features: Tensor,  # int64 [M]
    k: int,
    rows: Tensor,  # [M, 10]
    input_norm: int,
) -> Tensor:
    """``reference.activations_topk``; returns [N, M] in fp32."""
    n, width = x.shape
    m = len(features)
    rows, features = rows.float().contiguous(), features.contiguous()
    f = rows.new_empty(n, m)
    if n == 0 or m == 0:
        return f
    with torch.cuda.device_of(x):
        u = scales(x, residual, input_norm, OutputScale.ONE)[0] if input_norm else None
        found = ranked(stream_of(x, residual, encoder, u, encoder_bias.float()), features, k)
        tiling = steer_tiling(n, m, width, width)
        write_active[ceil_div(n, tiling.tokens), ceil_div(m, tiling.shrink_rows)](
            *found, features, rows, f, n, m, k, TOKENS=tiling.tokens, ROWS=tiling.shrink_rows, **tiling.options
        )
    return f
