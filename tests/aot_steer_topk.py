"""The calls of ``steer_topk`` whose launches are compiled ahead of time."""

import itertools

import torch
from aot import CAPABILITIES, DTYPES, Case, Op

from sparsesteer._layout import InputNorm, OutputScale
from sparsesteer.kernels import encode as encode_kernels
from sparsesteer.kernels import expand
from sparsesteer.kernels import steer_topk as topk_kernels

PAIRS = [("bf16", "bf16"), ("bf16", "fp32")]
COUNTED, SELECTED = 8, 100  # edited features
# input norm, output scale, preserve_norm, residual
PLAIN = (InputNorm.NONE, OutputScale.ONE, False, False)
LOADED = (InputNorm.LAYER_NORM, OutputScale.STD, True, True)


def call(x, rows, shape, m, rules):
    n, n_features, width = shape
    norm, scale, keep, with_residual = rules
    h = torch.empty(n, width, dtype=DTYPES[x])
    encoder = torch.empty(1, width, dtype=DTYPES[rows]).expand(n_features, width)  # a whole one would not be read
    topk_kernels.steer_topk(
        h, h, h if with_residual else None, encoder, torch.empty(n_features, 10)[:, 0], torch.arange(m), 64,
        torch.empty(m, width, dtype=DTYPES[rows]), torch.empty(m, 10), None, None, 1.0, norm, scale, 0.5, keep,
    )  # fmt: skip


def case(capability, x, rows, shape, m, rules=PLAIN):
    return Case(capability, (x, rows, shape, m, rules), aligned=shape[2] % 16 == 0)


OP = Op(
    name="steer_topk",
    kernels=(
        (topk_kernels, ("edited_pre_activations", "count_before", "edit_active", "keep_best")),
        (encode_kernels, ("token_scales", "write_sample", "keep_best", "write_candidates", "recompute_candidates")),
        (expand, ("expand_whole", "keep_norm")),
    ),
    call=call,
    sample=(
        case(90, "bf16", "bf16", (1, 131072, 2304), COUNTED),
        case(90, "bf16", "bf16", (1024, 16384, 2304), COUNTED),
        case(80, "bf16", "fp32", (32, 16384, 2304), SELECTED, LOADED),
    ),
    every=(
        *(
            case(c, *pair, (n, 65536, 2304), m, rules)
            for c, pair, n, m, rules in itertools.product(
                CAPABILITIES, PAIRS, (1, 32, 128, 1024), (COUNTED, SELECTED), (PLAIN, LOADED)
            )
        ),
        *(case(c, "bf16", "fp32", (n, 16384, 77), COUNTED) for c in CAPABILITIES for n in (1, 128)),
    ),
)
