"""The Triton kernels of ``steer_reconstruct`` on a CUDA device at real sizes, against the reference in fp64."""

import pytest
import torch
from cuda_checks import BESIDE_ROUNDING, ON_CUDA, PAIRS, replays
from sae_cases import expected, reconstruct_arguments
from steer_cases import edit_error, rounding_excess

from sparsesteer._layout import Column

kernels = pytest.importorskip("sparsesteer.kernels.steer_reconstruct", reason="triton is not installed")

pytestmark = ON_CUDA

EDIT_ERROR = 1e-5


@pytest.mark.parametrize(("dtype", "row_dtype"), PAIRS, ids=str)
@pytest.mark.parametrize("k", [0, 64])
@pytest.mark.parametrize("n", [1, 33, 1500])
def test_real_sizes(n, k, dtype, row_dtype):
    """Whole numbers, so that no rounding decides which features are active."""
    given = reconstruct_arguments(n, 576, 4608, 20, k, device="cuda", whole=True, dtype=dtype, row_dtype=row_dtype)
    if k == 0 and n % 2:
        given["table"][:, Column.THRESHOLD] = 100.0  # no more codes than there is room
    out, want = kernels.steer_reconstruct(*given.values()), expected("steer_reconstruct", given)
    if dtype == torch.float32:
        assert edit_error(out, want, given["into"]) <= EDIT_ERROR
    else:
        assert rounding_excess(out, want, given["into"]) <= BESIDE_ROUNDING


@pytest.mark.parametrize("k", [0, 7])
@pytest.mark.parametrize("n", [1, 33, 600])
def test_a_graph_replays_on_changed_inputs(monkeypatch, n, k):
    monkeypatch.setattr(kernels, "ROOM", 8)
    given = reconstruct_arguments(n, 576, 300, 20, k, device="cuda")
    assert replays(lambda: kernels.steer_reconstruct(*given.values()), given["x"].normal_)
