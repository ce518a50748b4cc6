"""The tilings that the Triton kernels are given, for every size: legal, covering, and wide enough for a GPU."""

import itertools

import pytest

from sparsesteer.kernels.tiling import MIN_DOT, ceil_div, power_of_two, steer_tiling
from sparsesteer.kernels.tiling_decode import decode_tiling, dense_tiling
from sparsesteer.kernels.tiling_slots import SCRATCH, slots_tiling

TOKENS = (1, 2, 4, 5, 16, 17, 64, 65, 300, 1024, 1025, 8192)
ROWS = (0, 1, 5, 16, 17, 40, 64, 65, 1024, 4096)
WIDTHS = (1, 64, 77, 200, 576, 2304, 4096)
MULTIPROCESSORS = 132


def is_power_of_two(n):
    return n == power_of_two(n)


@pytest.mark.parametrize("n", TOKENS)
def test_every_tiling_is_legal(n):
    for m, width, out_width in itertools.product(ROWS, WIDTHS, WIDTHS):
        tiling = steer_tiling(n, m, width, out_width)
        blocks = tiling._replace(splits=1, split_width=1)
        assert all(map(is_power_of_two, blocks)), "blocks and warps are powers of two"
        assert (tiling.splits - 1) * tiling.split_width < width <= tiling.splits * tiling.split_width
        assert tiling.split_width % tiling.shrink_step == 0
        assert tiling.tokens == 1 or tiling.tokens >= MIN_DOT
        if tiling.tokens > 1:
            assert min(tiling.shrink_rows, tiling.shrink_step, tiling.expand_rows, tiling.expand_width) >= MIN_DOT
        assert max(ceil_div(m, tiling.shrink_rows), ceil_div(out_width, tiling.expand_width)) < 65536


@pytest.mark.parametrize(("m", "width"), [(64, 2304), (1024, 2304), (64, 4096), (1024, 576)])
def test_one_token_fills_the_chip(m, width):
    tiling = steer_tiling(1, m, width, width)
    assert ceil_div(m, tiling.shrink_rows) * tiling.splits >= MULTIPROCESSORS
    assert ceil_div(width, tiling.expand_width) >= min(128, width // MIN_DOT)


@pytest.mark.parametrize("n", TOKENS)
def test_every_tiling_of_slots_is_legal(n):
    for entries, width in itertools.product((0, 1, 100, 4096, 65536, 1 << 20), WIDTHS):
        tiling = slots_tiling(n, entries, width, width)
        assert all(map(is_power_of_two, tiling._replace(splits=1, split_width=1, chunk=1)))
        assert (tiling.splits - 1) * tiling.split_width < width <= tiling.splits * tiling.split_width
        assert tiling.split_width % tiling.shrink_step == 0
        assert tiling.chunk % tiling.tokens == 0
        assert tiling.chunk * tiling.splits * entries <= max(SCRATCH, tiling.tokens * tiling.splits * entries)
        if tiling.tokens > 1:
            assert min(tiling.shrink_rows, tiling.shrink_step, tiling.expand_rows, tiling.expand_width) >= MIN_DOT


@pytest.mark.parametrize("n", TOKENS)
def test_every_tiling_of_codes_is_legal(n):
    for k, width, features in itertools.product((0, 1, 50, 512, 4096), WIDTHS, (1, 40, 4608, 131072)):
        gather, dense = decode_tiling(n, k, width, features * width * 4), dense_tiling(n, features)
        assert all(map(is_power_of_two, (*gather, *dense._replace(span=1))))
        assert dense.span % dense.features == 0
        assert ceil_div(features, dense.span) * ceil_div(n, dense.tokens) < 65536


def test_one_token_is_decoded_by_the_whole_chip():
    assert ceil_div(2304, decode_tiling(1, 64, 2304, 1 << 29).width) >= MULTIPROCESSORS


def test_many_tokens_read_blocks_of_a_decoder_that_stay_in_the_cache():
    small, large = (decode_tiling(4096, 64, 2304, features * 2304 * 4).width for features in (4608, 65536))
    assert small == 256 and large == 64


def test_many_tokens_are_not_split():
    assert steer_tiling(4096, 64, 2304, 2304).splits == 1


@pytest.mark.parametrize(("n", "want"), [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_power_of_two(n, want):
    assert power_of_two(n) == want
