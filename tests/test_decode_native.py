"""The compiled ``decode`` against the reference in fp64: gathered rows, bands of rows, dense bands."""

import math

import pytest
import torch
from instruction_sets import simd  # noqa: F401 - runs every test on each instruction set

from sparsesteer import _native, reference

if _native.extension is None:
    pytest.skip(_native.reason, allow_module_level=True)

pytestmark = pytest.mark.native

ERROR = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def codes(n, k, f, d, dtype=torch.float32, row_dtype=None, seed=0):
    """values, indices, decoder, bias: k different features of every token in any order, some of them padding."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, k, generator=generator, dtype=torch.float64)
    order = torch.rand(n, f, generator=generator).argsort(-1)[:, :k]
    padding = torch.rand(n, k, generator=generator) < 0.1
    indices = torch.where(padding, -1, order).int()
    decoder = torch.randn(f, d, generator=generator, dtype=torch.float64) / math.sqrt(max(1, k))
    compute = reference.compute_dtype(values.to(dtype))
    bias = torch.randn(d, generator=generator, dtype=torch.float64)
    return values.to(dtype), indices, decoder.to(row_dtype or compute), bias.to(compute)


def run(given):
    return _native.extension.decode(*given)


def expected(given):
    """Dense sums in fp64, which are small where the reference's gathered rows would be large."""
    values, indices, decoder, bias = given
    dense = torch.zeros(len(values), len(decoder), dtype=torch.float64)
    dense.scatter_add_(1, indices.clamp(min=0).long(), torch.where(indices >= 0, values.double(), 0.0))
    return dense @ decoder.double() + bias.double()


def check(given):
    out, want = run(given), expected(given)
    assert out.dtype == given[0].dtype and out.shape == want.shape
    if out.numel():
        assert (out.double() - want).norm() < ERROR[out.dtype] * want.norm()
    return out


SHAPES = [
    (0, 5, 30, 16), (1, 0, 30, 16), (1, 1, 1, 1), (1, 64, 300, 577), (2, 7, 40, 72), (7, 30, 1000, 200),
    (33, 12, 2000, 77), (300, 9, 50, 65),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}xK{}xF{}xD{}".format(*s))
def test_shapes(shape, dtype):
    check(codes(*shape, dtype=dtype))


@pytest.mark.parametrize("n, k", [(7, 5), (40, 200), (13, 1100)])
def test_bf16_rows(n, k):
    check(codes(n, k, 1100, 72, row_dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("k", (160, 400, 1111))  # gathered, in bands, all features of dense bands
@pytest.mark.parametrize("n", (9, 37, 280))
def test_many_codes(n, k, dtype):
    check(codes(n, k, 1111, 136, dtype=dtype))


def test_agrees_with_the_reference_of_the_op():
    given = codes(9, 12, 40, 72)
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in given]
    torch.testing.assert_close(run(given).double(), reference.decode(*wide), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", (20, 400, 1111))
def test_a_token_has_the_same_bits_in_any_batch_padding_and_number_of_threads(k):
    values, indices, decoder, bias = codes(280, k, 1111, 328)
    whole, threads = run((values, indices, decoder, bias)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run((values, indices, decoder, bias)), whole)
    finally:
        torch.set_num_threads(threads)
    for rows in (slice(0, 1), slice(3, 5), slice(100, 131)):
        part = values[rows], indices[rows]
        assert torch.equal(run((*part, decoder, bias)), whole[rows])
        padded = torch.nn.functional.pad(part[0], (9, 3)), torch.nn.functional.pad(part[1], (9, 3), value=-1)
        assert torch.equal(run((*padded, decoder, bias)), whole[rows])


def test_few_and_many_codes_side_by_side():
    values, indices, decoder, bias = codes(280, 1111, 1111, 136)
    indices[::3, 20:] = -1
    check((values, indices, decoder, bias))


@pytest.mark.parametrize("k", (30, 700))
def test_equal_indices_add(k):
    values, indices, decoder, bias = codes(6, k, 1000, 72)
    indices[:, ::2], indices[3] = 4, 7
    check((values, indices, decoder, bias))


def test_only_padding_gives_the_bias():
    values, indices, decoder, bias = codes(5, 8, 40, 72)
    values.fill_(float("nan"))
    assert torch.equal(run((values, torch.full_like(indices, -1), decoder, bias)), bias.expand(5, -1))


def test_huge_tiny_and_nan_values_stay_in_their_token():
    values, indices, decoder, bias = codes(8, 8, 40, 72)
    want = run((values, indices, decoder, bias))
    for token, value in ((1, 1e38), (3, 1e-42), (5, float("nan")), (6, float("inf"))):
        values[token] = value
    out, others = run((values, indices, decoder, bias)), [0, 2, 4, 7]
    assert torch.equal(out[others], want[others])
    assert torch.isfinite(out[3]).all() and out[5].isnan().all()
    finite = [3]
    torch.testing.assert_close(out[finite].double(), expected((values, indices, decoder, bias))[finite])


@pytest.mark.parametrize("index", (40, 2**31 - 1))
@pytest.mark.parametrize("n", (1, 200))
def test_an_index_out_of_range(n, index):
    values, indices, decoder, bias = codes(n, 8, 40, 72)
    indices[-1, 3] = index
    with pytest.raises(RuntimeError, match=f"decode: index {index} is out of range, the decoder has 40 rows"):
        run((values, indices, decoder, bias))


def test_tensors_that_are_not_contiguous():
    given = codes(9, 12, 40, 72)
    turned = [tensor.T.contiguous().T for tensor in given[:3]]
    assert torch.equal(run((*turned, given[3].repeat_interleave(2)[::2])), run(given))


@pytest.mark.parametrize("place, name", [(1, "indices"), (2, "decoder"), (3, "bias")])
def test_wrong_shapes_and_dtypes(place, name):
    given = list(codes(6, 8, 40, 72))
    given[place] = given[place].to(torch.float16)
    with pytest.raises(RuntimeError, match=f"decode: {name} should be"):
        run(given)
    given = list(codes(6, 8, 40, 72))
    given[place] = given[place][..., :-1]
    with pytest.raises(RuntimeError, match=r"decode: \w+ should have shape"):
        run(given)
