"""For pytest-benchmark: pytest benchmarks/bench_encode.py --benchmark-only

Every case of a quick run with everybody who can take part, checked against fp64 and then timed alone. Ratios come from
``sparsesteer bench``, where competitors take turns.
"""

from functools import partial

import pytest
import torch

from sparsesteer.benchmarks import gate, harness, suite

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_generate_tests(metafunc):
    """A test for each case and competitor of the op whose name the test function bears."""
    bench = suite.BENCHES[metafunc.function.__name__.removeprefix("test_")]
    pairs = [(bench, case, name) for case in bench.cases(True, DEVICE) for name in (gate.OURS, *bench.contenders)]
    metafunc.parametrize("contender", pairs, ids=[f"{case}: {name}" for _, case, name in pairs], indirect=True)


@pytest.fixture(scope="session")
def run():
    """The settings of a quick run, whose weights live on from case to case."""
    return harness.Run(DEVICE, quick=True)


@pytest.fixture
def contender(request, run):
    """The call of one competitor on one case, whose result was right."""
    bench, case, name = request.param
    weights = None if run.too_long(case.flops) else run.weights(case, bench.cold_bytes)
    if weights is None:
        pytest.skip("too large for this machine")
    with torch.no_grad():
        race = next(bench.races(case, weights, run))
        call = race.ours[0] if name == gate.OURS else _theirs(race, name, run)
        race.check(name, call())
        yield partial(_finished, call) if DEVICE == "cuda" else call


def _theirs(race, name, run):
    found = [contender for contender in race.contenders if contender.name == name]
    reason = run.left_out(found[0]) if found else "it does not compute this case"
    if reason:
        pytest.skip(f"{name} is left out: {reason}")
    return found[0].make()[0]


def _finished(call):
    result = call()
    torch.cuda.synchronize()
    return result
