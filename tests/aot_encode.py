"""The calls of ``encode`` whose launches are compiled ahead of time."""

import itertools

import torch
from aot import CAPABILITIES, DTYPES, Case, Op

from sparsesteer._layout import InputNorm
from sparsesteer.kernels import encode as encode_kernels

STREAMS = ("write_sample", "keep_best", "write_candidates", "recompute_candidates")
PAIRS = [("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32"), ("fp16", "bf16")]
TOPK, THRESHOLD, WIDE = (64, 64), (0, 512), (0, 4096)  # k, width
RULES = [(TOPK, InputNorm.LAYER_NORM), (THRESHOLD, InputNorm.NONE)]


def call(x, rows, shape, rule, input_norm):
    n, n_features, width = shape
    k, columns = rule
    encoder = torch.empty(1, width, dtype=DTYPES[rows]).expand(n_features, width)  # a whole one would not be read
    encode_kernels.encode(
        torch.empty(n, width, dtype=DTYPES[x]), encoder, torch.empty(n_features, 10), k, columns, input_norm
    )


def case(capability, x, rows, shape, rule, input_norm=InputNorm.NONE):
    return Case(capability, (x, rows, shape, rule, input_norm), aligned=shape[2] % 16 == 0)


OP = Op(
    name="encode",
    kernels=((encode_kernels, ("token_scales", *STREAMS, "finish_codes", "unpack_codes")),),
    call=call,
    sample=(
        case(90, "bf16", "bf16", (1, 131072, 2304), TOPK),
        case(80, "bf16", "bf16", (1024, 16384, 2304), TOPK),
        case(90, "bf16", "bf16", (1024, 65536, 2304), THRESHOLD),
        case(100, "bf16", "fp32", (32, 16384, 2304), TOPK, InputNorm.LAYER_NORM),
        case(90, "fp32", "fp32", (512, 4608, 576), WIDE),
    ),
    every=(
        *(
            case(c, *pair, (n, 65536, 2304), *rule)
            for c, pair, n, rule in itertools.product(CAPABILITIES, PAIRS, (1, 8, 32, 128, 1024), RULES)
        ),
        *(case(c, "bf16", "bf16", (n, 4608, 576), WIDE) for c in CAPABILITIES for n in (1, 8, 1024)),
        *(case(c, "bf16", "fp32", (n, 16384, 77), TOPK) for c in CAPABILITIES for n in (1, 128)),
    ),
)
