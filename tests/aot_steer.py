"""The calls of ``steer`` whose launches are compiled ahead of time."""

import itertools

import torch
from aot import CAPABILITIES, DTYPES, Case, Op

from sparsesteer._layout import InputNorm, OutputScale
from sparsesteer.kernels import expand
from sparsesteer.kernels import steer as steer_kernels

PAIRS = [(x, rows) for x in DTYPES for rows in ("fp32", "bf16")]
# one shape for each tiling: one token, tensor-core tiles of 16, 32 and 64 tokens, split and whole, few and many rows
SHAPES = list(itertools.product((1, 32, 512, 4096), (16, 64, 1024), (2304,)))
# input norm, output scale, preserve_norm, every optional tensor
PLAIN = (InputNorm.NONE, OutputScale.ONE, False, False)
LOADED = (InputNorm.LAYER_NORM, OutputScale.STD, True, True)
RULES = [
    *((norm, rule, False, False) for norm in InputNorm for rule in OutputScale),
    (InputNorm.NONE, OutputScale.GAP_FILL, True, True),
    LOADED,
]


def call(x, rows, shape, rules):
    n, m, width = shape
    norm, scale, keep, optional = rules
    h, w, residual = (torch.empty(n, width, dtype=DTYPES[x]) for _ in range(3))
    encoder, decoder = (torch.empty(m, width, dtype=DTYPES[rows]) for _ in range(2))
    steer_kernels.steer(
        h, w, residual if optional else None, encoder, decoder, torch.empty(m, 10),
        torch.empty(width) if optional else None, torch.empty(n) if optional else None,
        1.0, norm, scale, 0.5, keep,
    )  # fmt: skip


def case(capability, x, rows, shape, rules):
    return Case(capability, (x, rows, shape, rules), aligned=shape[2] % 16 == 0)


OP = Op(
    name="steer",
    kernels=(
        (steer_kernels, ("shrink_split", "expand_split", "shrink_whole")),
        (expand, ("expand_whole", "keep_norm")),
    ),
    call=call,
    sample=(
        case(80, "bf16", "fp32", (1, 64, 2304), PLAIN),
        case(90, "bf16", "fp32", (32, 64, 2304), PLAIN),
        case(90, "fp32", "fp32", (4096, 1024, 2304), LOADED),
        case(80, "bf16", "fp32", (4096, 1024, 2304), LOADED),
        case(100, "bf16", "bf16", (4096, 1024, 2304), PLAIN),
        case(90, "fp16", "fp32", (512, 64, 576), PLAIN),
    ),
    every=(
        *(case(c, x, r, s, p) for c in CAPABILITIES for x, r in PAIRS for s in SHAPES for p in (PLAIN, LOADED)),
        *(
            case(c, "bf16", "fp32", s, p)
            for c in CAPABILITIES
            for s in ((1, 64, 2304), (4096, 64, 2304))
            for p in RULES
        ),
        *(case(c, "bf16", "fp32", (n, m, 576), PLAIN) for c in CAPABILITIES for n in (1, 8, 300) for m in (1, 256)),
        *(case(c, "bf16", "bf16", (n, 40, 77), LOADED) for c in CAPABILITIES for n in (1, 17, 300, 2000)),
    ),
)
