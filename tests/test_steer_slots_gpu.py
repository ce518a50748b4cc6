"""The Triton kernels of ``steer_slots`` on a CUDA device at real sizes, against the reference in fp64."""

import pytest
import torch
from cuda_checks import BESIDE_ROUNDING, ON_CUDA, PAIRS, replays
from sae_cases import expected, slots_arguments
from steer_cases import edit_error, rounding_excess

from sparsesteer._layout import InputNorm, OutputScale

slot_kernels = pytest.importorskip("sparsesteer.kernels.steer_slots", reason="triton is not installed")

pytestmark = ON_CUDA

EDIT_ERROR = 1e-5
SIZES = (200, 0, 64)


@pytest.mark.parametrize(("dtype", "row_dtype"), PAIRS, ids=str)
@pytest.mark.parametrize("n", [1, 3, 50, 300, 5000])
def test_real_sizes(n, dtype, row_dtype):
    """Whole numbers, so that no rounding decides which features are active."""
    given = slots_arguments(n, 2304, 100, SIZES, device="cuda", whole=True, dtype=dtype, row_dtype=row_dtype)
    out, want = slot_kernels.steer_slots(*given.values()), expected("steer_slots", given)
    if dtype == torch.float32:
        assert edit_error(out, want, given["into"]) <= EDIT_ERROR
    else:
        assert rounding_excess(out, want, given["into"]) <= BESIDE_ROUNDING


@pytest.mark.parametrize("n", [1, 33, 600, 5000])
def test_a_graph_replays_on_changed_slots(n):
    rules = {"input_norm": InputNorm.LAYER_NORM, "scale_rule": OutputScale.STD}
    given = slots_arguments(n, 576, 100, SIZES, device="cuda", **rules)

    def change():
        given["slot"].random_(-1, len(SIZES))
        given["slots"][0, 1] = 3

    assert replays(lambda: slot_kernels.steer_slots(*given.values()), change)


@pytest.mark.parametrize("n", [1, 600])
def test_in_place(n):
    given = slots_arguments(n, 576, 100, SIZES, device="cuda")
    given["into"] = given["x"]
    want = slot_kernels.steer_slots(*given.values())
    slot_kernels.steer_slots_out(*given.values(), out=given["x"])
    assert torch.equal(given["x"], want)
