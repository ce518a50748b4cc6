"""The calls of ``decode`` whose launches are compiled ahead of time."""

import itertools

import torch
from aot import CAPABILITIES, DTYPES, Case, Op

from sparsesteer.kernels import decode as decode_kernels


def call(rows, shape):
    n, k, width = shape
    decoder = torch.empty(1, width, dtype=DTYPES[rows]).expand(65536, width)  # a whole one would not be read
    codes = torch.empty(n, k), torch.empty(n, k, dtype=torch.int32)
    decode_kernels.decode(*codes, decoder, torch.empty(width))


def case(capability, rows, shape):
    return Case(capability, (rows, shape), aligned=shape[2] % 16 == 0)


OP = Op(
    name="decode",
    kernels=((decode_kernels, ("decode_codes",)),),
    call=call,
    sample=(
        case(90, "fp32", (1, 64, 2304)),
        case(80, "bf16", (4096, 100, 2304)),
        case(100, "bf16", (32, 512, 4096)),
    ),
    every=tuple(
        case(c, rows, shape)
        for c, rows, shape in itertools.product(
            CAPABILITIES,
            ("fp32", "bf16"),
            [*itertools.product((1, 4, 8, 32, 4096), (1, 32, 100, 512), (2304,)), (1, 50, 576), (32, 50, 77)],
        )
    ),
)
