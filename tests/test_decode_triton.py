"""The Triton kernel of ``decode`` against the reference in fp64."""

import pytest
import torch
from triton_device import DEVICE, HALVES, pytestmark  # noqa: F401

from sparsesteer import reference
from sparsesteer.kernels import decode as decode_kernels
from sparsesteer.kernels.tiling_decode import DecodeTiling

ERROR = 1e-6


def arguments(n, k, f, width, *, padded=0.3, row_dtype=torch.float32, seed=0):
    """Codes with padding anywhere, poisoned: what a padded place holds must not matter."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(f, (n, k), generator=generator, dtype=torch.int32)
    values = torch.randn(n, k, generator=generator)
    padding = torch.rand(n, k, generator=generator) < padded
    return (
        values.masked_fill(padding, torch.nan).to(DEVICE),
        indices.masked_fill(padding, -1).to(DEVICE),
        torch.randn(f, width, generator=generator).to(DEVICE, row_dtype),
        torch.randn(width, generator=generator).to(DEVICE),
    )


def check(given):
    values, indices, decoder, bias = given
    out = decode_kernels.decode(*given)
    want = reference.decode(values.double(), indices, decoder.double(), bias.double())
    assert out.dtype == values.dtype
    assert torch.isfinite(out).all()
    assert (out - want).norm() <= ERROR * want.norm()


@pytest.fixture(params=[DecodeTiling(16, 64), DecodeTiling(4, 16), DecodeTiling(64, 128)], ids=str)
def tiling(request, monkeypatch):
    monkeypatch.setattr(decode_kernels, "decode_tiling", lambda *sizes: request.param)


@pytest.mark.parametrize(("n", "k", "f", "width"), [(1, 5, 40, 77), (3, 40, 50, 64), (2, 1, 9, 200), (2, 64, 30, 1)])
def test_every_tiling(tiling, n, k, f, width):
    check(arguments(n, k, f, width))


@pytest.mark.parametrize("n", [0, 1, 7, 33])
@pytest.mark.parametrize(("k", "width"), [(1, 77), (20, 60), (0, 5)])
def test_the_tiling_of_the_shape(n, k, width):
    check(arguments(n, k, 30, width))


def test_all_features_active():
    f = 150
    values, _, decoder, bias = arguments(2, f, f, 40, padded=0)
    check((values, torch.arange(f, dtype=torch.int32, device=DEVICE).expand(2, f), decoder, bias))


def test_nothing_active_leaves_the_bias():
    values, indices, decoder, bias = arguments(3, 10, 20, 50, padded=1)
    assert torch.equal(decode_kernels.decode(values, indices, decoder, bias), bias.expand(3, 50))


def test_a_feature_twice_counts_twice():
    values, indices, decoder, bias = arguments(2, 20, 3, 50, padded=0)
    check((values, indices, decoder, bias))


def test_an_index_outside_is_padding():
    values, indices, decoder, bias = arguments(2, 10, 20, 50)
    indices[indices < 0] = 20
    want = decode_kernels.decode(values, indices.masked_fill(indices == 20, -1), decoder, bias)
    assert torch.equal(decode_kernels.decode(values, indices, decoder, bias), want)


def test_strided_operands():
    values, indices, decoder, bias = arguments(3, 10, 20, 50)
    wide = torch.full((20, 59), torch.nan, device=DEVICE)
    wide[:, 3:-6] = decoder
    check((values.T.contiguous().T, indices.T.contiguous().T, wide[:, 3:-6], bias))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sixteen_bit_rows_are_read_exactly(dtype):
    check(arguments(3, 10, 20, 50, row_dtype=dtype))


@pytest.mark.parametrize("size", [1e-38, 1e30], ids=["denormal", "huge"])
def test_extreme_values(size):
    values, indices, decoder, bias = arguments(2, 10, 20, 50)
    check((values * size, indices, decoder, bias * size))


def test_a_broken_token_stays_alone():
    values, indices, decoder, bias = arguments(3, 10, 20, 50, padded=0)
    want = decode_kernels.decode(values, indices, decoder, bias)
    values[1] = torch.nan
    out = decode_kernels.decode(values, indices, decoder, bias)
    assert torch.equal(out[[0, 2]], want[[0, 2]]) and out[1].isnan().all()


def test_same_input_same_bits():
    given = arguments(3, 40, 30, 77)
    assert torch.equal(decode_kernels.decode(*given), decode_kernels.decode(*given))


def test_the_op_takes_this_kernel(monkeypatch):
    calls = []
    launched = decode_kernels.decode
    monkeypatch.setattr(decode_kernels, "decode", lambda *given: calls.append(1) or launched(*given))
    given = arguments(3, 10, 20, 50)
    torch.library.opcheck(torch.ops.sparsesteer.decode.default, given)
    assert calls
