"""What the ops in which every feature takes part are measured on, and the torch code that their contenders share."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsesteer.benchmarks.case import SHAPES, TOKENS, Case
from sparsesteer.benchmarks.weights import Weights

QUICK = {(576, 4608): (1, 32, 512), (2304, 16384): (1, 32)}  # tokens by shape, on a CPU
QUICK_TOKENS_CUDA = (1, 32, 512, 4096)
ACTIVATIONS = ("topk", "jumprelu")
USUAL_M, USUAL_K, OTHER_K = 64, 64, (32, 100, 192)
OTHER_K_SHAPE, OTHER_K_TOKENS = (2304, 16384), (1, 32, 512)

Way = Callable[..., Any]


def cases(
    op: str,
    quick: bool,
    device: str,
    activations: tuple[str, ...] = ACTIVATIONS,
    edited: tuple[int, ...] = (0,),
    dtypes: tuple[str, ...] = ("fp32",),
) -> list[Case]:
    """K = 64 on all shapes and the other K on one of them; bf16 weights are not part of a quick run."""
    by_shape: dict[tuple[int, int], tuple[int, ...]] = dict.fromkeys(SHAPES, TOKENS)
    if quick:
        by_shape = QUICK if device == "cpu" else {shape: QUICK_TOKENS_CUDA for shape in QUICK}
    found = []
    for shape, n_tokens in by_shape.items():
        for dtype, activation, m, n in product(dtypes[:1] if quick else dtypes, activations, edited, n_tokens):
            found.append(Case(op, *shape, n, m, USUAL_K, dtype=dtype, row_dtype=dtype, activation=activation))
        if shape == OTHER_K_SHAPE and not quick:
            usual = USUAL_M if USUAL_M in edited else edited[0]
            others = product(OTHER_K, activations, OTHER_K_TOKENS)
            found += [Case(op, *shape, n, usual, k, activation=activation) for k, activation, n in others]
    return found


def linear(weights: Weights) -> Callable[[Tensor], Tensor]:
    """All pre-activations [N, F] with one product: the rows lie as torch likes them best."""
    encoder, bias = weights.encoder[: weights.n_features], weights.bias
    return lambda h: F.linear(h, encoder, bias)


def linear_topk(weights: Weights, k: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """(values, indices) [N, K] by falling value, as ours."""
    encode = linear(weights)

    def way(h: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = encode(h).topk(k)
        return values.relu_(), indices

    return way


def decode_bag(weights: Weights, bias: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Reconstruction [N, D] of (values, indices) [N, K] plus bias [D]: torch's own gather and sum."""
    decoder = weights.decoder[: weights.n_features]

    def way(values: Tensor, indices: Tensor) -> Tensor:
        return F.embedding_bag(indices, decoder, per_sample_weights=values.to(decoder.dtype), mode="sum").add_(bias)

    return way


def compiled(way: Way) -> Way:
    """Through torch.compile."""
    return torch.compile(way, fullgraph=True, dynamic=False)
