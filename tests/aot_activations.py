"""The calls of ``activations`` and ``activations_topk`` whose launches are compiled ahead of time."""

import itertools

import torch
from aot import CAPABILITIES, DTYPES, Case, Op
from aot_steer_topk import COUNTED, SELECTED

from sparsesteer._layout import InputNorm
from sparsesteer.kernels import activations as row_kernels
from sparsesteer.kernels import activations_topk as whole_kernels
from sparsesteer.kernels import encode as encode_kernels
from sparsesteer.kernels import steer_topk as topk_kernels

PAIRS = [(x, rows) for x in DTYPES for rows in ("fp32", "bf16")]
SHAPES = list(itertools.product((1, 32, 512, 4096), (16, 64, 1024), (2304,)))
PLAIN, LOADED = (InputNorm.NONE, False), (InputNorm.LAYER_NORM, True)  # input norm, residual


def call(x, rows, shape, rules):
    n, m, width = shape
    norm, with_residual = rules
    h = torch.empty(n, width, dtype=DTYPES[x])
    encoder = torch.empty(m, width, dtype=DTYPES[rows])
    row_kernels.activations(h, h if with_residual else None, encoder, torch.empty(m, 10), norm)


def call_topk(x, rows, shape, m, k, rules):
    n, n_features, width = shape
    norm, with_residual = rules
    h = torch.empty(n, width, dtype=DTYPES[x])
    encoder = torch.empty(1, width, dtype=DTYPES[rows]).expand(n_features, width)  # a whole one would not be read
    bias = torch.empty(n_features, 10)[:, 0]
    residual = h if with_residual else None
    whole_kernels.activations_topk(h, residual, encoder, bias, torch.arange(m), k, torch.empty(m, 10), norm)


def case(capability, *arguments):
    return Case(capability, arguments, aligned=arguments[2][2] % 16 == 0)


OP = Op(
    name="activations",
    kernels=((row_kernels, ("shrink_split", "activate_split")),),
    call=call,
    sample=(
        case(80, "bf16", "fp32", (1, 64, 2304), PLAIN),
        case(90, "bf16", "fp32", (4096, 1024, 2304), LOADED),
        case(100, "bf16", "bf16", (32, 64, 2304), LOADED),
    ),
    every=(
        *(case(c, x, r, s, p) for c in CAPABILITIES for x, r in PAIRS for s in SHAPES for p in (PLAIN, LOADED)),
        *(case(c, "bf16", "bf16", (n, 40, 77), LOADED) for c in CAPABILITIES for n in (1, 17, 300, 2000)),
    ),
)

TOPK = Op(
    name="activations_topk",
    kernels=(
        (topk_kernels, ("edited_pre_activations", "count_before", "keep_best")),
        (encode_kernels, ("token_scales", "write_sample", "keep_best", "write_candidates", "recompute_candidates")),
        (whole_kernels, ("write_active",)),
    ),
    call=call_topk,
    sample=(
        case(90, "bf16", "bf16", (1, 131072, 2304), COUNTED, 64, PLAIN),
        case(80, "bf16", "fp32", (32, 16384, 2304), SELECTED, 64, LOADED),
        case(90, "bf16", "bf16", (32, 16384, 2304), SELECTED, 0, PLAIN),
    ),
    every=tuple(
        case(c, "bf16", rows, (n, 65536, 2304), m, k, rules)
        for c, rows, n, m, k, rules in itertools.product(
            CAPABILITIES, ("bf16", "fp32"), (1, 32, 128, 1024), (COUNTED, SELECTED), (64, 0), (PLAIN, LOADED)
        )
    ),
)
