"""The Triton kernel of ``decode`` on a CUDA device at real sizes, against the reference in fp64."""

import pytest
import torch
from cuda_checks import ON_CUDA, replays

from sparsesteer import reference

decode_kernels = pytest.importorskip("sparsesteer.kernels.decode", reason="triton is not installed")

pytestmark = ON_CUDA


def arguments(n, k, f, width, row_dtype=torch.float32):
    return (
        torch.randn(n, k, device="cuda"),
        torch.randint(-1, f, (n, k), device="cuda", dtype=torch.int32),
        torch.randn(f, width, device="cuda").to(row_dtype),
        torch.randn(width, device="cuda"),
    )


@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [1, 64, 700])
@pytest.mark.parametrize("n", [1, 8, 100, 3000])
def test_real_sizes(n, k, row_dtype):
    values, indices, decoder, bias = arguments(n, k, 16384, 576, row_dtype)
    out = decode_kernels.decode(values, indices, decoder, bias)
    part = slice(0, 100)  # in fp64 all gathered rows would not fit
    want = reference.decode(values[part].double(), indices[part], decoder.double(), bias.double())
    assert (out[part] - want).norm() <= 1e-6 * want.norm()
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("n", [1, 33, 600])
def test_a_graph_replays_on_changed_codes(n):
    given = arguments(n, 50, 300, 576)
    assert replays(lambda: decode_kernels.decode(*given), lambda: given[1].random_(-1, 300))
