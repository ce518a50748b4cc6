"""The sizes that the kernels of ``encode`` and ``steer_topk`` are given: legal, sufficient, and bounded in memory."""

import itertools

import pytest

from sparsesteer.kernels.tiling import MIN_DOT, ceil_div, power_of_two
from sparsesteer.kernels.tiling_encode import (
    MAX_GRID,
    SCRATCH_BYTES,
    SelectTiling,
    select_tiling,
    stream_tiling,
)

TOKENS = (1, 2, 16, 17, 33, 64, 65, 512, 513, 4096, 100_000)
FEATURES = (1, 40, 576, 2048, 4608, 16384, 16385, 65536, 131072, 1 << 20)
MULTIPROCESSORS = 132


@pytest.mark.parametrize("n", TOKENS)
@pytest.mark.parametrize("narrow", [False, True])
def test_every_stream_is_legal(n, narrow):
    for n_features in FEATURES:
        tiling = stream_tiling(n, n_features, narrow)
        assert all(size == power_of_two(size) for size in tiling)
        assert tiling.tokens == 1 or min(tiling.tokens, tiling.rows, tiling.step) >= MIN_DOT
        assert ceil_div(n_features, tiling.rows) <= MAX_GRID
        assert (tiling.tokens == 1) == (n == 1)


@pytest.mark.parametrize("n", TOKENS)
@pytest.mark.parametrize("k", [0, 1, 32, 64, 100, 1024, 16384])
def test_every_selection_is_legal(n, k):
    for n_features, width in itertools.product(FEATURES, (1, 64, 512, 4096)):
        wanted = min(k, n_features)
        stream = stream_tiling(n, n_features, True)
        tiling = select_tiling(n, n_features, wanted, width, stream)
        blocks = ceil_div(n_features, stream.rows)
        if tiling.every:
            assert tiling.sampled == ceil_div(blocks, tiling.every) * stream.rows <= tiling.capacity
            held = n_features if tiling.every == 1 else tiling.sampled - (stream.rows - 1)
            assert held >= wanted, "a sample bounds only as many as it holds"
        if tiling.capacity < n_features:
            assert tiling.capacity >= (wanted or min(width, n_features)) + stream.rows
        assert tiling.chunk % stream.tokens == 0 and tiling.chunk <= MAX_GRID
        least = stream.tokens * tiling.capacity
        assert tiling.chunk * tiling.capacity <= max(SCRATCH_BYTES // 8, least) < 2**31


@pytest.mark.parametrize(("n_features", "k"), [(4608, 32), (16384, 64), (65536, 64), (131072, 192)])
def test_candidates_are_few(n_features, k):
    tiling = select_tiling(1, n_features, k, k, stream_tiling(1, n_features, True))
    assert isinstance(tiling, SelectTiling)
    assert tiling.every >= 4 and tiling.sampled * 4 <= n_features, "the sample is a small part"
    assert tiling.capacity * 2 <= n_features
    assert tiling.capacity >= 1.9 * k * n_features / tiling.sampled, "with room for twice what is expected"


@pytest.mark.parametrize("n_features", [4608, 16384, 131072])
@pytest.mark.parametrize("n", [1, 8, 32, 512])
def test_few_tokens_fill_the_chip(n, n_features):
    tiling = stream_tiling(n, n_features, True)
    assert ceil_div(n_features, tiling.rows) * ceil_div(n, tiling.tokens) >= MULTIPROCESSORS
