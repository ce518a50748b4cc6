"""The calls of ``steer_reconstruct`` whose launches are compiled ahead of time; ``encode`` has an entry of its own."""

import itertools
from unittest import mock

import torch
from aot import CAPABILITIES, DTYPES, Case, Op

from sparsesteer._layout import InputNorm
from sparsesteer.kernels import steer_reconstruct as reconstruct_kernels

PAIRS = [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")]
NORMS = (InputNorm.NONE, InputNorm.LAYER_NORM)
KERNELS = ("edit_codes", "decode_densely", "write_reconstruction", "keep_norm")


def no_codes(x, encoder, table, k, width, input_norm):
    n = len(x)
    return torch.empty(n, width), torch.empty(n, width, dtype=torch.int32), torch.empty(n, dtype=torch.int32)


def call(x, rows, shape, k, input_norm, keep_norm):
    n, n_features, width = shape
    h = torch.empty(1, width, dtype=DTYPES[x]).expand(n, width)
    encoder, decoder = (torch.empty(1, width, dtype=DTYPES[rows]).expand(n_features, width) for _ in range(2))
    with mock.patch.object(reconstruct_kernels, "encode", no_codes):
        reconstruct_kernels.steer_reconstruct(
            h, h, None, encoder, torch.empty(n_features, 10), k, torch.empty(20, dtype=torch.int64),
            torch.empty(20, 10), decoder, torch.empty(width), torch.empty(n), 1.0, input_norm, keep_norm,
        )  # fmt: skip


def case(capability, x, rows, shape, k=0, input_norm=InputNorm.NONE, keep_norm=False):
    return Case(capability, (x, rows, shape, k, input_norm, keep_norm), aligned=shape[2] % 16 == 0)


OP = Op(
    name="steer_reconstruct",
    kernels=((reconstruct_kernels, KERNELS),),
    call=call,
    sample=(
        case(90, "bf16", "fp32", (1, 16384, 2304)),
        case(80, "fp32", "fp32", (512, 16384, 2304), 0, InputNorm.LAYER_NORM, True),
        case(100, "bf16", "bf16", (2048, 65536, 2304)),
        case(90, "bf16", "bf16", (32, 16384, 2304), 64, InputNorm.CONSTANT_NORM),
    ),
    every=(
        *(
            case(c, *pair, (n, 16384, 2304), k, norm)
            for c, pair, n, k, norm in itertools.product(CAPABILITIES, PAIRS, (1, 32, 2048), (0, 64), NORMS)
        ),
        *(case(c, "bf16", "fp32", (n, 4608, 576)) for c in CAPABILITIES for n in (1, 300)),
        *(
            case(c, "bf16", "bf16", (n, 4608, 77), 0, InputNorm.LAYER_NORM, True)
            for c in CAPABILITIES
            for n in (1, 2000)
        ),
    ),
)
