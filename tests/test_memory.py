"""What the native ops need beside their arguments and results: nothing of size N x F."""

import pytest
import torch

from sparsesteer import _native
from sparsesteer.benchmarks import harness, memory, suite
from sparsesteer.benchmarks.case import Case

CASES = [
    Case("encode", 64, 8192, 512, K=16, activation="topk"),
    Case("encode", 64, 8192, 512, K=16, activation="jumprelu"),
    Case("decode", 64, 8192, 512, K=16, activation="topk"),
    Case("steer_topk", 64, 8192, 512, M=16, K=16, activation="topk"),
    Case("steer_reconstruct", 64, 8192, 512, M=16, K=16, activation="topk"),
    Case("steer_reconstruct", 64, 8192, 512, M=16, K=16, activation="jumprelu"),
    Case("steer_slots", 64, 8192, 512, M=16, S=8),
    Case("steer", 64, 8192, 512, M=64),
]
MOST = 1 / 4  # of N x F in fp32, which is 16 MiB here


@pytest.mark.native
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_op_needs_a_tensor_of_all_features(case):
    if not hasattr(_native.extension, case.op):
        pytest.skip(_native.reason or f"the extension does not implement {case.op}")
    run = harness.Run("cpu", quick=True)
    with torch.no_grad():
        weights = run.weights(case, 0)
        race = next(suite.BENCHES[case.op].races(case, weights, run))
        result, extra = memory.peak_extra(race.ours[0], "cpu")
    race.check("sparsesteer", result)
    if extra is None:
        pytest.skip("this system cannot reset its peak")
    assert extra <= MOST * case.dense_bytes


def test_the_measure_sees_a_tensor_of_all_features():
    case = CASES[0]
    _, extra = memory.peak_extra(lambda: torch.ones(case.N, case.F).sum(), "cpu")
    assert extra is None or extra == pytest.approx(case.dense_bytes, rel=0.1)
