"""``steer`` beside everything else that does the same: python -m sparsesteer.benchmarks.bench_steer --quick"""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import product

from torch import Tensor

from sparsesteer.benchmarks import competitors, gate, harness, peers, timing
from sparsesteer.benchmarks.case import SHAPES, TOKENS, Case
from sparsesteer.benchmarks.harness import Bench, Contender, Race, Run
from sparsesteer.benchmarks.weights import Weights
from sparsesteer.plans import SteeringPlan

QUICK_SHAPES = ((576, 4608), (2304, 16384))
QUICK_TOKENS = (1, 8, 32, 128, 512)
EDITED, QUICK_EDITED = (1, 16, 64, 256, 1024), (1, 64, 1024)
USUAL_EDITED = 64  # where all competitors take part, and bf16 in a quick run
MOST_FLOPS_CPU = 2e10


def cases(quick: bool, device: str) -> list[Case]:
    """What is measured; on the CPU without calls of more than ``MOST_FLOPS_CPU``."""
    found = []
    for (width, n_features), dtype in product(QUICK_SHAPES if quick else SHAPES, ("fp32", "bf16")):
        brief = quick and device == "cpu"
        edited = (USUAL_EDITED,) if quick and dtype == "bf16" else QUICK_EDITED if brief else EDITED
        for m, n in product(edited, QUICK_TOKENS if brief else TOKENS):
            found.append(Case("steer", width, n_features, n, M=m, dtype=dtype))
    return [case for case in found if device != "cpu" or case.flops <= MOST_FLOPS_CPU]


def races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """Rows hot in cache beside everybody, rows from memory beside gathered torch."""
    h = harness.tokens(case, run.device)
    plans = weights.plans(case.M, 2 * timing.MOST_ROUNDS)
    check = gate.edited_rows(plans[0], h, case).check
    yield Race([partial(competitors.ours(plans[0]), h)], _all(case, weights, plans[0], h, run.quick), check)
    # each on rows of its own half of the plans: what one has read is not warm for the other
    half = len(plans) // 2
    ours, theirs = (
        [partial(way(plan), h) for plan in part]
        for way, part in ((competitors.ours, plans[:half]), (competitors.gathered, plans[half:]))
    )
    yield Race(ours, [Contender(competitors.GATHERED, lambda: theirs)], lambda name, out: None, "cold")


def _all(case: Case, weights: Weights, plan: SteeringPlan, h: Tensor, quick: bool) -> list[Contender]:
    gathered = Contender(competitors.GATHERED, lambda: [partial(competitors.gathered(plan), h)])
    if case.M != USUAL_EDITED:
        return [gathered]
    compiled = Contender(
        competitors.COMPILED,
        lambda: [partial(competitors.compiled(plan), h)],
        absent=competitors.absent_compiler,
        compiles=True,
    )
    if quick and case.dtype != "fp32":  # whole SAEs compute the same in fp32
        return [gathered, compiled]
    once = 4 * case.N * case.D * case.F
    return [
        gathered,
        compiled,
        Contender(competitors.ENCODE_ALL, lambda: [partial(competitors.encode_all(weights, case.M), h)], once),
        Contender(
            competitors.SAELENS_ARITHMETIC,
            lambda: [partial(competitors.saelens_arithmetic(weights, case.M), h)],
            2 * once,
        ),
        Contender(
            competitors.SAELENS_CLASS,
            lambda: [partial(competitors.saelens_class(weights, case.M), h)],
            2 * once,
            absent=peers.absent_saelens,
            in_graph=False,
        ),
    ]


BENCH = Bench("steer", cases, races, competitors.ALL, harness.COLD_BYTES)


def test_steer(benchmark, contender):
    """For pytest-benchmark, which times each competitor alone."""
    benchmark(contender)


if __name__ == "__main__":
    sys.exit(harness.main(BENCH))
