"""``activations`` and ``activations_topk`` beside others: python -m sparsesteer.benchmarks.bench_activations --quick"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsesteer as ss
from sparsesteer import ops
from sparsesteer._layout import Column
from sparsesteer.benchmarks import bench_steer_topk, competitors, gate, harness, timing, whole_sae
from sparsesteer.benchmarks.case import SHAPES, TOKENS, Case
from sparsesteer.benchmarks.harness import Bench, Contender, Race, Run
from sparsesteer.benchmarks.report import GEMM_ALONE
from sparsesteer.benchmarks.weights import Weights
from sparsesteer.plans import SteeringPlan

LINEAR_TOPK = "torch linear + topk + gather"
QUICK_SHAPES = ((2304, 16384),)
QUICK_TOKENS = (1, 32, 512)
WATCHED, QUICK_WATCHED = (1, 16, 64, 256), (64,)

Way = Callable[[Tensor], Tensor]  # h [N, D] -> f [N, M]


def cases(quick: bool, device: str) -> list[Case]:
    """As for ``steer``, with fewer numbers of features."""
    sizes = (
        product(("fp32", "bf16"), QUICK_WATCHED, QUICK_TOKENS) if quick else product(("fp32", "bf16"), WATCHED, TOKENS)
    )
    return [
        Case("activations", *shape, n, m, dtype=dtype)
        for (dtype, m, n), shape in product(list(sizes), QUICK_SHAPES if quick else SHAPES)
    ]


def races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """Rows hot in cache, and rows from memory."""
    h = harness.tokens(case, run.device)
    plans = weights.plans(case.M, 2 * timing.MOST_ROUNDS)
    truth = gate.activations_of(plans[0], h, case)
    yield Race(
        [partial(ops.activations, h, plans[0])],
        [
            Contender(competitors.GATHERED, lambda: [partial(gathered(plans[0]), h)]),
            Contender(
                competitors.COMPILED,
                lambda: [partial(whole_sae.compiled(gathered(plans[0])), h)],
                absent=competitors.absent_compiler,
                compiles=True,
            ),
        ],
        truth.check,
    )
    half = len(plans) // 2  # each on rows of its own: what one has read is not warm for the other
    theirs = [partial(gathered(plan), h) for plan in plans[half:]]
    yield Race(
        [partial(ops.activations, h, plan) for plan in plans[:half]],
        [Contender(competitors.GATHERED, lambda: theirs)],
        lambda name, out: None,
        "cold",
    )


def gathered(plan: SteeringPlan) -> Way:
    """The best plain torch: one product with the features' rows, and the activation in place."""
    encoder, dtype = plan.encoder, plan.encoder.dtype
    bias = plan.rows[:, Column.BIAS].to(dtype).contiguous()
    threshold = plan.rows[:, Column.THRESHOLD].clamp(min=0).to(dtype)

    def way(h: Tensor) -> Tensor:
        z = F.linear(h.to(dtype), encoder, bias)
        return z.mul_(z > threshold)

    return way


def topk_cases(quick: bool, device: str) -> list[Case]:
    """As for ``steer_topk``."""
    return whole_sae.cases("activations_topk", quick, device, ("topk",), QUICK_WATCHED if quick else WATCHED)


def topk_races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """On tokens that all need every feature."""
    h = bench_steer_topk.all_live(harness.tokens(case, run.device), weights)
    truth = gate.Codes.of(weights, h, case).watched()
    plan = weights.sae("topk", case.K).plan(ss.Edit.ablate(range(case.M)))

    def check(name: str, out: Tensor) -> None:
        if name != GEMM_ALONE:  # a part of the work
            truth.check(name, out)

    contenders = [
        Contender(GEMM_ALONE, lambda: [partial(whole_sae.linear(weights), h)], case.flops),
        Contender(LINEAR_TOPK, lambda: [partial(masked(weights, case.M, case.K), h)], case.flops),
    ]
    yield Race([partial(ops.activations, h, plan)], contenders, check)


def masked(weights: Weights, m: int, k: int) -> Way:
    """Every feature encoded, the K-th largest found, the watched ones' activations taken."""
    encode = whole_sae.linear(weights)

    def way(h: Tensor) -> Tensor:
        z = encode(h)
        last = z.topk(k, sorted=False).values.amin(-1, keepdim=True)
        watched = z[:, :m]
        return torch.where((watched >= last) & (watched > 0), watched, 0.0)

    return way


BENCH = Bench("activations", cases, races, (competitors.GATHERED, competitors.COMPILED), harness.COLD_BYTES)
TOPK = Bench("activations_topk", topk_cases, topk_races, (GEMM_ALONE, LINEAR_TOPK))


def test_activations(benchmark, contender):
    """For pytest-benchmark, which times each competitor alone."""
    benchmark(contender)


def test_activations_topk(benchmark, contender):
    """For pytest-benchmark, which times each competitor alone."""
    benchmark(contender)


if __name__ == "__main__":
    sys.exit(harness.main(BENCH, TOPK))
