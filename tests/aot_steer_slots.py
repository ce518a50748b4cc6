"""The calls of ``steer_slots`` whose launches are compiled ahead of time."""

import itertools

import torch
from aot import CAPABILITIES, DTYPES, Case, Op

from sparsesteer._layout import InputNorm, OutputScale
from sparsesteer.kernels import steer_slots as slot_kernels

PAIRS = [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")]
SLOTS, SHARED_ROWS = 64, 1024
# input norm, output scale, preserve_norm, every optional tensor
PLAIN = (InputNorm.NONE, OutputScale.ONE, False, False)
LOADED = (InputNorm.LAYER_NORM, OutputScale.STD, True, True)
RULES = [(norm, rule, False, False) for norm in InputNorm for rule in OutputScale]


def call(x, rows, shape, rules):
    n, entries, width = shape
    norm, scale, keep, optional = rules
    h, w, residual = (torch.empty(1, width, dtype=DTYPES[x]).expand(n, width) for _ in range(3))
    encoder, decoder = (torch.empty(SHARED_ROWS, width, dtype=DTYPES[rows]) for _ in range(2))
    slot_kernels.steer_slots(
        h, w, residual if optional else None,
        torch.empty(n, dtype=torch.int32), torch.empty(SLOTS, 3, dtype=torch.int32), encoder, decoder,
        torch.empty(entries, dtype=torch.int32), torch.empty(entries, 10), torch.empty(SLOTS, width),
        torch.empty(n) if optional else None, 1.0, norm, scale, 0.5, keep,
    )  # fmt: skip


def case(capability, x, rows, shape, rules=PLAIN):
    return Case(capability, (x, rows, shape, rules), aligned=shape[2] % 16 == 0)


OP = Op(
    name="steer_slots",
    kernels=((slot_kernels, ("shrink_slots", "expand_slots", "keep_norm")),),
    call=call,
    sample=(
        case(80, "bf16", "fp32", (1, 4096, 2304)),
        case(90, "bf16", "fp32", (32, 4096, 2304), LOADED),
        case(90, "bf16", "bf16", (300, 4096, 2304)),
        case(80, "fp32", "fp32", (4096, 4096, 2304), LOADED),
        case(100, "bf16", "fp32", (4096, 4096, 4096)),
    ),
    every=(
        *(
            case(c, *pair, (n, 4096, 2304), rules)
            for c, pair, n, rules in itertools.product(CAPABILITIES, PAIRS, (1, 8, 64, 300, 4096), (PLAIN, LOADED))
        ),
        *(case(90, "bf16", "fp32", (n, 4096, 2304), r) for n in (1, 4096) for r in RULES),
        *(case(c, "bf16", "fp32", (n, 1000, 576)) for c in CAPABILITIES for n in (1, 8, 300)),
        *(case(c, "bf16", "bf16", (n, 40, 77), LOADED) for c in CAPABILITIES for n in (1, 100, 4000)),
    ),
)
