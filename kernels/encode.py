"""``encode`` in Triton: a sample of the features bounds the k-th largest, the others are kept if they reach it.

Every pre-activation is computed once and compared where it is computed; what is written is a buffer of candidates, a
few times k for a token, from which the best are chosen exactly. A token with more candidates than room is computed
again by one program, slow and exact, which the device decides: nothing waits for the host.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparsesteer._layout import InputNorm, OutputScale
from sparsesteer.kernels.candidates import recompute_candidates, token_scales, write_candidates, write_sample
from sparsesteer.kernels.operands import matrix, weights
from sparsesteer.kernels.select import finish_codes, keep_best, unpack_codes
from sparsesteer.kernels.tiling import MAX_REGISTERS, ceil_div, power_of_two
from sparsesteer.kernels.tiling_encode import (
    SCALES_STEP,
    SELECT_BLOCK,
    SELECT_WARPS,
    SORT_LIMIT,
    SelectTiling,
    StreamTiling,
    select_tiling,
    stream_tiling,
)

SELECT_OPTIONS = {"num_warps": SELECT_WARPS, "maxnreg": MAX_REGISTERS}


class Stream(NamedTuple):
    """Tokens and the encoder that they meet, as the kernels take them."""

    x: Tensor  # [N, D], unit stride along D
    residual: Tensor | None  # [N, D]
    encoder: Tensor  # [F, D], unit stride along D
    scale: Tensor | None  # u [N]
    bias: Tensor  # [F], any stride
    tiling: StreamTiling

    @property
    def sizes(self) -> tuple[int, int, int]:
        """N, F and D."""
        return len(self.x), *self.encoder.shape

    @property
    def operands(self) -> tuple:
        """What every kernel starts with."""
        x, residual, encoder = map(matrix, (self.x, self.residual, self.encoder))
        return *x, *residual, *encoder, self.scale, self.bias, self.bias.stride(0)

    def part(self, tokens: slice) -> "Stream":
        """Some of its tokens."""
        residual = None if self.residual is None else self.residual[tokens]
        scale = None if self.scale is None else self.scale[tokens]
        return self._replace(x=self.x[tokens], residual=residual, scale=scale)


class Candidates(NamedTuple):
    """What may be chosen for each token; at least the best k, or all that are active, or the best of those."""

    packed: Tensor  # int64 [N, capacity]
    found: Tensor  # int32 [N], beyond the capacity for a token whose candidates are only the best ones
    floor: Tensor  # int64 [N], the k-th largest of the sample, which is in the candidates; unset without one


def encode(
    x: Tensor,  # [N, D]
    encoder: Tensor,  # [F, D]
    rows: Tensor,  # [F, 10]
    k: int,
    width: int,
    input_norm: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.encode``; returns fp32 values [N, width], int32 indices [N, width], int32 counts [N]."""
    n = len(x)
    rows = rows.float().contiguous()
    codes = (
        rows.new_empty(n, width),
        rows.new_empty(n, width, dtype=torch.int32),
        rows.new_empty(n, dtype=torch.int32),
    )
    if n == 0:
        return codes
    with torch.cuda.device_of(x):
        scale = None
        if input_norm != InputNorm.NONE:
            scale, _ = scales(x, None, input_norm, OutputScale.ONE)
        stream = stream_of(x, None, encoder, scale, rows[:, 0])
        select = select_tiling(*stream.sizes[:2], min(k, len(rows)), width, stream.tiling)
        for start in range(0, n, select.chunk):
            chunk = slice(start, start + select.chunk)
            _encode_chunk(stream.part(chunk), rows, k, select, [part[chunk] for part in codes])
    return codes


def scales(x: Tensor, residual: Tensor | None, input_norm: int, scale_rule: int) -> tuple[Tensor, Tensor]:
    """The factors u and r [N] of every token; r is not that of GAP_FILL."""
    u, r = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
    token_scales[(len(x),)](
        *matrix(x), *matrix(residual), u, r, x.shape[1],
        INPUT_NORM=int(input_norm), SCALE_RULE=int(scale_rule), STEP=SCALES_STEP,
    )  # fmt: skip
    return u, r


def stream_of(x: Tensor, residual: Tensor | None, encoder: Tensor, scale: Tensor | None, bias: Tensor) -> Stream:
    """Tokens x (+ residual) [N, D] before an encoder [F, D]."""
    encoder = weights(encoder)
    narrow = encoder.dtype == torch.bfloat16 == x.dtype and residual is None
    tiling = stream_tiling(len(x), len(encoder), narrow)
    return Stream(matrix(x)[0], matrix(residual)[0], matrix(encoder)[0], scale, bias, tiling)


def find_candidates(stream: Stream, rows: Tensor | None, want: int, select: SelectTiling) -> Candidates:
    """Candidates for the ``want`` largest pre-activations; with ``rows`` for those of the active features."""
    n, n_features, width = stream.sizes
    tiles = ceil_div(n, stream.tiling.tokens)
    blocks = ceil_div(n_features, stream.tiling.rows)
    packed = stream.x.new_empty(n, select.capacity, dtype=torch.int64)
    count = stream.x.new_zeros(n, dtype=torch.int32)
    floor = packed.new_empty(n)
    sample_blocks = ceil_div(blocks, select.every) if select.every else 0
    if sample_blocks:
        write_sample[tiles, sample_blocks](
            *stream.operands, packed, *(n, n_features, width, select.capacity, select.every),
            **stream.tiling.blocks, **stream.tiling.options,
        )  # fmt: skip
        keep_best[(n,)](
            packed, count, floor, select.sampled, want, select.capacity,
            SAMPLED=True, BLOCK=SELECT_BLOCK, **SELECT_OPTIONS,
        )  # fmt: skip
    if sample_blocks < blocks:
        found = (rows, floor, packed, count)
        write_candidates[tiles, blocks - sample_blocks](
            *stream.operands, *found, *(n, n_features, width, select.capacity, select.every),
            **stream.tiling.blocks, **stream.tiling.options,
        )  # fmt: skip
        if select.capacity < n_features:
            recompute_candidates[(n,)](
                *stream.operands, *found, n_features, width, want, select.capacity,
                BLOCK=SELECT_BLOCK, **stream.tiling.blocks, **stream.tiling.options,
            )  # fmt: skip
    return Candidates(packed, count, floor)


def _encode_chunk(stream: Stream, rows: Tensor, k: int, select: SelectTiling, codes: list[Tensor]) -> None:
    values, indices, active = codes
    width = values.shape[1]
    want = min(k or width, len(rows))
    candidates = find_candidates(stream, None if k else rows, want, select)
    in_kernel = max(want, width) <= SORT_LIMIT
    finish_codes[(len(values),)](
        candidates.packed, candidates.found, rows, values, indices, active, want, width, select.capacity,
        TOPK=k > 0, SORTED=in_kernel, WIDE=power_of_two(want) if in_kernel else SORT_LIMIT,
        BLOCK=SELECT_BLOCK, **SELECT_OPTIONS,
    )  # fmt: skip
    if not in_kernel:
        ordered = candidates.packed[:, :want].sort(dim=1, descending=True).values
        unpack_codes[len(values), ceil_div(width, SELECT_BLOCK)](
            ordered, values, indices, want, width, BLOCK=SELECT_BLOCK, **SELECT_OPTIONS
        )
