"""Sizes of the Triton kernels that stream a whole encoder: plain functions of the shape."""

import math
from typing import NamedTuple

from sparsesteer.kernels.tiling import MAX_REGISTERS, PROGRAMS, ceil_div, power_of_two

MAX_GRID = 65535
SCRATCH_BYTES = 64 << 20
SELECT_BLOCK = 2048  # candidates that a program reads at a time
SELECT_WARPS = 8
SORT_LIMIT = 1024  # beyond, a library sorts
SCALES_STEP = 1024
COUNT_AT_ONCE = 16  # edited features that are counted together beside a single token
_LEAST_CAPACITY = 1024
_SURE_K = 64  # a smaller k has too wide a spread of candidates


class StreamTiling(NamedTuple):
    """How a product of all features with a batch of tokens is cut into programs."""

    tokens: int  # tokens of a program; 1 multiplies without tensor cores
    rows: int  # features of a program
    step: int  # columns read at a time
    warps: int

    @property
    def blocks(self) -> dict[str, int]:
        """The constants that a kernel is compiled with."""
        return {"TOKENS": self.tokens, "ROWS": self.rows, "STEP": self.step}

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        return {"num_warps": self.warps, "maxnreg": MAX_REGISTERS}


class SelectTiling(NamedTuple):
    """How the best features of a token are found.

    The k-th largest of a sample is a lower bound for the k-th largest of all: the sample is every ``every``-th block
    of features, and of all others only those that reach its bound are written down, at most ``capacity`` a token.
    """

    every: int  # 1: the sample is everything; 0: no sample, a rule of its own says who is a candidate
    sampled: int  # features of the sample, a multiple of a program's rows
    capacity: int  # candidates of a token; those with more are computed again
    chunk: int  # tokens at once, so that their candidates stay within SCRATCH_BYTES


def stream_tiling(n: int, n_features: int, narrow: bool) -> StreamTiling:
    """The tiling for N tokens and F features; ``narrow``: 16-bit operands on both sides."""
    if n == 1:
        rows = max(16, power_of_two(ceil_div(n_features, MAX_GRID)))
        return StreamTiling(tokens=1, rows=rows, step=128, warps=4)
    if narrow and n > 512:
        return StreamTiling(tokens=128, rows=128, step=64, warps=8)
    tokens = 16 if n <= 16 else 32 if n <= 32 else 64
    rows = 64
    while rows > 16 and ceil_div(n_features, rows) * ceil_div(n, tokens) < PROGRAMS:
        rows //= 2
    return StreamTiling(tokens=tokens, rows=rows, step=64 if narrow else 32, warps=8 if tokens == 64 else 4)


def select_tiling(n: int, n_features: int, k: int, width: int, stream: StreamTiling) -> SelectTiling:
    """How to find the k largest of F pre-activations, or with k = 0 up to ``width`` active features."""
    if k == 0:
        capacity = min(max(2 * power_of_two(width), _LEAST_CAPACITY), power_of_two(n_features))
        return SelectTiling(0, 0, capacity, _chunk(capacity, stream.tokens))
    blocks = ceil_div(n_features, stream.rows)
    sample_blocks = ceil_div(_sample(n_features, k), stream.rows)
    every = blocks // sample_blocks
    if every < 4:
        sampled = blocks * stream.rows
        return SelectTiling(1, sampled, sampled, _chunk(sampled, stream.tokens))
    sampled = ceil_div(blocks, every) * stream.rows
    # candidates are k F / S, with a relative deviation of 1 / sqrt(k): room for eight of them
    expected = max(k, _SURE_K) * n_features / sampled
    capacity = power_of_two(math.ceil(max(expected * (1 + 8 / math.sqrt(max(k, _SURE_K))), sampled, _LEAST_CAPACITY)))
    return SelectTiling(every, sampled, capacity, _chunk(capacity, stream.tokens))


def most_counted(n: int) -> int:
    """Edited features up to which counting costs less than selecting: memory hides it beside few tokens."""
    return 64 if n <= 16 else 8


def _sample(n_features: int, k: int) -> int:
    """A size S that makes the work on the sample and on the k F / S candidates about equal."""
    return power_of_two(max(math.isqrt(max(k, _SURE_K) * n_features), 2 * k))


def _chunk(capacity: int, tokens: int) -> int:
    return max(1, min(SCRATCH_BYTES // (8 * capacity), MAX_GRID) // tokens) * tokens
