"""``steer_reconstruct``, edited reconstructions, beside others: python -m
sparsesteer.benchmarks.bench_steer_reconstruct --quick"""

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
from sparsesteer.benchmarks.weights import VALUE, Weights

SAELENS_FORWARD = "SAELens's forward, no error term"
SPARSE = "torch linear + topk + embedding_bag"
DENSE = "torch linear + threshold + matmul"
EDITED = (16,)


def cases(quick: bool, device: str) -> list[Case]:
    """Both activations."""
    return whole_sae.cases("steer_reconstruct", quick, device, edited=EDITED)


def races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """Every feature encoded, M of them set, everything decoded."""
    h = harness.tokens(case, run.device)
    truth = gate.Codes.of(weights, h, case).reconstructed(weights, h)
    edit = ss.Edit.set(dict.fromkeys(range(case.M), VALUE))
    plan = weights.sae(case.activation, case.K).plan(edit, reconstruct=True)
    twice = 4 * case.N * case.D * case.F

    def saelens() -> list:
        lens = peers.saelens(weights, case.activation, case.K)
        return [partial(peers.set_codes(lens, case.M), h)]

    plain = {
        "topk": Contender(SPARSE, lambda: [partial(sparse(weights, case.M, case.K), h)], case.flops),
        "jumprelu": Contender(DENSE, lambda: [partial(dense(weights, case.M, case.K), h)], twice),
    }
    lens = Contender(SAELENS_FORWARD, saelens, twice, peers.absent_saelens, in_graph=False)
    yield Race([partial(ops.steer, h, plan)], [plain[case.activation], lens], truth.check)


def sparse(weights: Weights, m: int, k: int) -> whole_sae.Way:
    """K codes of each token, edited ones silenced; what they are set to is a constant of the edit."""
    constant = VALUE * weights.decoder[:m].sum(0)
    encode, decode = whole_sae.linear_topk(weights, k), whole_sae.decode_bag(weights, constant)

    def way(h: Tensor) -> Tensor:
        values, indices = encode(h)
        return decode(values.masked_fill_(indices < m, 0), indices)

    return way


def dense(weights: Weights, m: int, k: int) -> whole_sae.Way:
    """All codes, the edited ones set, one product."""
    encode, decoder = whole_sae.linear(weights), weights.decoder[: weights.n_features]
    threshold, bias = weights.threshold(k), weights.decoder_bias

    def way(h: Tensor) -> Tensor:
        z = encode(h)
        codes = torch.where(z > threshold, z, 0)
        codes[:, :m] = VALUE
        return torch.addmm(bias, codes, decoder)

    return way


BENCH = Bench("steer_reconstruct", cases, races, (SPARSE, DENSE, SAELENS_FORWARD))


def test_steer_reconstruct(benchmark, contender):
    """For pytest-benchmark, which times each competitor alone."""
    benchmark(contender)


if __name__ == "__main__":
    sys.exit(harness.main(BENCH))
