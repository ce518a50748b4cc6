"""``steer_topk``, edits of a TopK SAE, beside others: python -m sparsesteer.benchmarks.bench_steer_topk --quick"""

import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import sparsesteer as ss
from sparsesteer import ops
from sparsesteer.benchmarks import gate, harness, peers, whole_sae
from sparsesteer.benchmarks.case import Case
from sparsesteer.benchmarks.harness import Bench, Contender, Race, Run
from sparsesteer.benchmarks.report import GEMM_ALONE
from sparsesteer.benchmarks.weights import VALUE, Weights

MASKED = "torch linear + topk + masked edit"
SAELENS_CLASS = "SAELens's class, error term"
EDITED, QUICK_EDITED = (1, 16, 64, 256), (64,)


def cases(quick: bool, device: str) -> list[Case]:
    """TopK alone: every other activation goes to ``steer``."""
    return whole_sae.cases("steer_topk", quick, device, ("topk",), QUICK_EDITED if quick else EDITED)


def races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """On tokens that all need every feature."""
    h = all_live(harness.tokens(case, run.device), weights)
    truth = gate.Codes.of(weights, h, case).steered(weights, h)
    plan = weights.sae("topk", case.K).plan(ss.Edit.set(dict.fromkeys(range(case.M), VALUE)))
    encode = whole_sae.linear(weights)

    def check(name: str, out: Tensor) -> None:
        if name != GEMM_ALONE:  # a part of the work, which steers nothing
            truth.check(name, out)

    contenders = [
        Contender(GEMM_ALONE, lambda: [partial(encode, h)], case.flops),
        Contender(MASKED, lambda: [partial(masked_edit(weights, case.M, case.K), h)], case.flops),
        Contender(
            SAELENS_CLASS,
            lambda: [partial(peers.set_codes(peers.saelens(weights, "topk", case.K, error_term=True), case.M), h)],
            4 * case.flops,
            peers.absent_saelens,
            in_graph=False,
        ),
    ]
    yield Race([partial(ops.steer, h, plan)], contenders, check)


def all_live(h: Tensor, weights: Weights) -> Tensor:
    """Tokens [N, D] turned so that the first feature's pre-activation is positive on each: ours, which skips all
    features where no edited one can be active, gets no token for free."""
    first = weights.encoder[0].to(h.dtype)
    z = h @ first
    wanted = z.abs() + 1
    return h + ((wanted - z) / first.dot(first))[:, None] * first


def masked_edit(weights: Weights, m: int, k: int) -> whole_sae.Way:
    """Every feature encoded, the K-th largest found, the edited ones' difference decoded."""
    encode, decoder = whole_sae.linear(weights), weights.decoder[:m]

    def way(h: Tensor) -> Tensor:
        z = encode(h)
        last = z.topk(k, sorted=False).values.amin(-1, keepdim=True)
        edited = z[:, :m]
        f = ((edited >= last) & (edited > 0)) * edited
        return torch.addmm(h, VALUE - f, decoder)

    return way


BENCH = Bench("steer_topk", cases, races, (GEMM_ALONE, MASKED, SAELENS_CLASS))


def test_steer_topk(benchmark, contender):
    """For pytest-benchmark, which times each competitor alone."""
    benchmark(contender)


if __name__ == "__main__":
    sys.exit(harness.main(BENCH))
