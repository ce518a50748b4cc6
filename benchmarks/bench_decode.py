"""``decode`` of sparse codes beside other decoders: python -m sparsesteer.benchmarks.bench_decode --quick"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sparsesteer import ops
from sparsesteer.benchmarks import competitors, gate, harness, peers, whole_sae
from sparsesteer.benchmarks.case import DTYPES, Case
from sparsesteer.benchmarks.harness import Bench, Contender, Race, Run
from sparsesteer.benchmarks.weights import Weights
from sparsesteer.ops import SparseCodes

BAG, BAG_COMPILED = "torch embedding_bag", "torch embedding_bag, compiled"
GATHERED = "torch gather + bmm"
DENSE = "torch scatter + matmul"
SAELENS = "SAELens's decode"
SPARSIFY = "eai-sparsify's decode"
MOST_GATHERED_BYTES = 1 << 30  # that a contender copies out of the decoder


def cases(quick: bool, device: str) -> list[Case]:
    """Codes of K features each; values are fp32 beside decoders in fp32 and bf16."""
    found = whole_sae.cases("decode", quick, device, ("topk",), dtypes=("fp32", "bf16"))
    return [case for case in found if case.n_bytes <= MOST_GATHERED_BYTES]


def races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """Codes that are not sorted by index, as ``encode`` gives them."""
    values, indices = random_codes(case, run.device)
    truth = gate.Decoded.of(weights, values, indices, case)
    sae = weights.sae("topk", case.K)
    counts = torch.full((case.N,), case.K, dtype=torch.int32, device=run.device)
    codes = SparseCodes(values, indices.int(), counts)
    yield Race([partial(ops.decode, codes, sae)], _others(case, weights, values, indices), truth.check)


def random_codes(case: Case, device: str) -> tuple[Tensor, Tensor]:
    """Positive values and different indices [N, K]."""
    generator = torch.Generator(device).manual_seed(case.N)
    steps = torch.randint(1, case.F // case.K + 1, (case.N, case.K), generator=generator, device=device)
    shuffled = torch.rand(case.N, case.K, generator=generator, device=device).argsort(-1)
    values = torch.rand(case.N, case.K, generator=generator, device=device) + 1
    return values, (steps.cumsum(-1) - 1).gather(-1, shuffled)


def _others(case: Case, weights: Weights, values: Tensor, indices: Tensor) -> list[Contender]:
    bag, dense = whole_sae.decode_bag(weights, weights.decoder_bias), partial(decode_dense, weights)
    found = [
        Contender(BAG, lambda: [partial(bag, values, indices)]),
        Contender(
            BAG_COMPILED,
            lambda: [partial(whole_sae.compiled(bag), values, indices)],
            absent=competitors.absent_compiler,
            compiles=True,
        ),
        Contender(DENSE, lambda: [partial(dense, values, indices)], 2 * case.N * case.D * case.F),
        Contender(
            SAELENS,
            lambda: [_saelens(weights, values, indices)],
            2 * case.N * case.D * case.F,
            peers.absent_saelens,
            in_graph=False,
        ),
        Contender(
            SPARSIFY, lambda: [partial(peers.sparsify(weights, case.K).decode, values, indices)], 0,
            peers.absent_sparsify,
        ),
    ]  # fmt: skip
    if case.N * case.K * case.D * DTYPES[case.row_dtype].itemsize <= MOST_GATHERED_BYTES:
        found.append(Contender(GATHERED, lambda: [partial(decode_gathered, weights, values, indices)]))
    return found


def decode_gathered(weights: Weights, values: Tensor, indices: Tensor) -> Tensor:
    """Rows copied out of the decoder, then one product for each token."""
    picked = weights.decoder[indices]
    return torch.baddbmm(weights.decoder_bias, values.to(picked.dtype)[:, None], picked)[:, 0]


def decode_dense(weights: Weights, values: Tensor, indices: Tensor) -> Tensor:
    """Codes scattered into [N, F], then one product."""
    decoder = weights.decoder[: weights.n_features]
    return torch.addmm(weights.decoder_bias, _scattered(weights, values, indices).to(decoder.dtype), decoder)


def _saelens(weights: Weights, values: Tensor, indices: Tensor) -> Callable[[], Tensor]:
    """Its codes are dense already, which is in its favour."""
    lens = peers.saelens(weights, "topk", values.shape[1])
    return partial(lens.decode, _scattered(weights, values, indices))


def _scattered(weights: Weights, values: Tensor, indices: Tensor) -> Tensor:
    return values.new_zeros(len(values), weights.n_features).scatter_(-1, indices, values)


BENCH = Bench("decode", cases, races, (BAG, BAG_COMPILED, GATHERED, DENSE, SAELENS, SPARSIFY))


def test_decode(benchmark, contender):
    """For pytest-benchmark, which times each competitor alone."""
    benchmark(contender)


if __name__ == "__main__":
    sys.exit(harness.main(BENCH))
