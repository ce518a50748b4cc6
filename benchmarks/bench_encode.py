"""``encode``, with and without the int8 screen, beside other encoders: python -m sparsesteer.benchmarks.bench_encode"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparsesteer import ops
from sparsesteer.benchmarks import competitors, gate, harness, peers, whole_sae
from sparsesteer.benchmarks.case import SHAPES, Case
from sparsesteer.benchmarks.harness import Bench, Contender, Race, Run
from sparsesteer.benchmarks.weights import Weights
from sparsesteer.ops import SparseCodes

if TYPE_CHECKING:
    from sparsify import SparseCoder

LINEAR_TOPK = "torch linear + topk"
LINEAR_NONZERO = "torch linear + threshold + nonzero"
LINEAR_TOPK_COMPILED = "torch linear + topk, compiled"
LINEAR_THRESHOLD_COMPILED = "torch linear + threshold, dense, compiled"
SAELENS = "SAELens's encode"
SPARSIFY = "eai-sparsify's encode"
UNSCREENED = "our encode without the screen"
TORCH = (LINEAR_TOPK, LINEAR_TOPK_COMPILED, LINEAR_NONZERO, LINEAR_THRESHOLD_COMPILED)
SCREENED_TOKENS = (1, 4)


def cases(quick: bool, device: str) -> list[Case]:
    """Both activations in fp32 and with bf16 weights."""
    return whole_sae.cases("encode", quick, device, dtypes=("fp32", "bf16"))


def screened_cases(quick: bool, device: str) -> list[Case]:
    """Few tokens and wide SAEs; the screen is for CPUs."""
    shapes = [(2304, 16384)] if quick else [shape for shape in SHAPES if shape[1] >= 16384]
    found = product(shapes, whole_sae.ACTIVATIONS, SCREENED_TOKENS[: 1 if quick else None])
    return [
        Case("encode_screened", *shape, n, K=whole_sae.USUAL_K, activation=activation)
        for shape, activation, n in found
        if device == "cpu"
    ]


def races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """Beside everybody."""
    h = harness.tokens(case, run.device)
    yield Race([_ours(case, weights, h, screened=False)], _others(case, weights, h), _check(case, weights, h))


def screened_races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """Beside our own encode, which gives the same bits, and torch."""
    h = harness.tokens(case, run.device)
    plain = Contender(UNSCREENED, lambda: [_ours(case, weights, h, screened=False)])
    yield Race([_ours(case, weights, h, screened=True)], [plain, *_torch(case, weights, h)], _check(case, weights, h))


def _ours(case: Case, weights: Weights, h: Tensor, screened: bool) -> Callable[[], SparseCodes]:
    sae = weights.sae(case.activation, case.K)
    width = case.K if case.activation == "topk" else 8 * case.K  # a threshold leaves K on average
    return partial(ops.encode, h, sae.with_screen() if screened else sae, width)


def _others(case: Case, weights: Weights, h: Tensor) -> list[Contender]:
    lens = partial(peers.saelens, weights, case.activation, case.K)
    found = [
        *_torch(case, weights, h),
        Contender(
            SAELENS,
            lambda: [partial(lens().encode, h.float())],
            case.flops,
            absent=peers.absent_saelens,
            in_graph=False,
        ),
    ]
    if case.activation == "topk":
        coder = Contender(
            SPARSIFY,
            lambda: [partial(_sparsify_codes, peers.sparsify(weights, case.K), h)],
            case.flops,
            absent=peers.absent_sparsify,
        )
        found.append(coder)
    return found


def _torch(case: Case, weights: Weights, h: Tensor) -> list[Contender]:
    absent = competitors.absent_compiler
    if case.activation == "topk":
        way = whole_sae.linear_topk(weights, case.K)
        return [
            Contender(LINEAR_TOPK, lambda: [partial(way, h)], case.flops),
            Contender(
                LINEAR_TOPK_COMPILED, lambda: [partial(whole_sae.compiled(way), h)], case.flops, absent, compiles=True
            ),
        ]
    threshold = weights.threshold(case.K)
    dense = whole_sae.compiled(_dense_threshold(weights, threshold))
    return [
        Contender(LINEAR_NONZERO, lambda: [partial(linear_nonzero(weights, threshold), h)], case.flops, in_graph=False),
        Contender(LINEAR_THRESHOLD_COMPILED, lambda: [partial(dense, h)], case.flops, absent, compiles=True),
    ]


def linear_nonzero(weights: Weights, threshold: float) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """(values, tokens, features) of all active features of all tokens, each [active]."""
    encode = whole_sae.linear(weights)

    def way(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = encode(h)
        token, feature = (z > threshold).nonzero(as_tuple=True)
        return z[token, feature], token, feature

    return way


def _sparsify_codes(coder: "SparseCoder", h: Tensor) -> tuple[Tensor, Tensor]:
    codes = coder.encode(h)
    return codes.top_acts, codes.top_indices


def _dense_threshold(weights: Weights, threshold: float) -> Callable[[Tensor], Tensor]:
    encode = whole_sae.linear(weights)

    def way(h: Tensor) -> Tensor:
        z = encode(h)
        return (z > threshold) * z

    return way


def _check(case: Case, weights: Weights, h: Tensor) -> Callable[[str, Any], None]:
    truth = gate.Codes.of(weights, h, case)

    def check(name: str, result: Any) -> None:
        name = gate.OURS if name == UNSCREENED else name
        if isinstance(result, SparseCodes) and bool((result.counts > result.values.shape[-1]).any()):
            raise gate.WrongResult(f"{case}: {name} has more active features than columns")
        truth.check(name, dense_codes(result, case.N, case.F)[truth.tokens])

    return check


def dense_codes(result: Any, n_tokens: int, n_features: int) -> Tensor:
    """Activations [N, F] of what an encoder gives."""
    if isinstance(result, Tensor):
        return result
    if isinstance(result, SparseCodes):
        return result.to_dense(n_features)
    dense = result[0].new_zeros(n_tokens, n_features)
    if len(result) == 2:
        return dense.scatter(-1, result[1], result[0])
    values, token, feature = result
    return dense.index_put((token, feature), values)


BENCH = Bench("encode", cases, races, (*TORCH, SAELENS, SPARSIFY))
SCREENED = Bench("encode_screened", screened_cases, screened_races, (UNSCREENED, *TORCH))


def test_encode(benchmark, contender):
    """For pytest-benchmark, which times each competitor alone."""
    benchmark(contender)


def test_encode_screened(benchmark, contender):
    """For pytest-benchmark."""
    benchmark(contender)


if __name__ == "__main__":
    sys.exit(harness.main(BENCH, SCREENED))
