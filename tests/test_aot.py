"""Every kernel that a call can launch compiles for real GPUs, without spilled registers and within shared memory.

Needs no GPU and no driver: the launchers run on CPU tensors, their launches are recorded and compiled.
"""

import dataclasses
import itertools
import os

import pytest
import torch

aot = pytest.importorskip("aot", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

from sparsesteer._layout import InputNorm, OutputScale  # noqa: E402
from sparsesteer.kernels import steer as steer_kernels  # noqa: E402

pytestmark = pytest.mark.triton

CAPABILITIES = (80, 90, 100)
KERNELS = ("shrink_split", "expand_split", "shrink_whole", "expand_whole", "keep_norm")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PAIRS = [(x, rows) for x in DTYPES for rows in ("fp32", "bf16")]
# one shape for each tiling: one token, tensor-core tiles of 16, 32 and 64 tokens, split and whole, few and many rows
SHAPES = list(itertools.product((1, 32, 512, 4096), (16, 64, 1024), (2304,)))
PLAIN = (InputNorm.NONE, OutputScale.ONE, False, False)
LOADED = (InputNorm.LAYER_NORM, OutputScale.STD, True, True)
RULES = [
    *((norm, rule, False, False) for norm in InputNorm for rule in OutputScale),
    (InputNorm.NONE, OutputScale.GAP_FILL, True, True),
    LOADED,
]


def launches(x, rows, shape, rules):
    """The launches of one call; ``rules``: input norm, output scale, preserve_norm, with every optional tensor."""
    n, m, width = shape
    norm, scale, keep, optional = rules
    h, w, residual = (torch.empty(n, width, dtype=DTYPES[x]) for _ in range(3))
    encoder, decoder = (torch.empty(m, width, dtype=DTYPES[rows]) for _ in range(2))
    with aot.recorded(steer_kernels, KERNELS) as recorded:
        steer_kernels.steer(
            h, w, residual if optional else None, encoder, decoder, torch.empty(m, 10),
            torch.empty(width) if optional else None, torch.empty(n) if optional else None,
            1.0, norm, scale, 0.5, keep,
        )  # fmt: skip
    return recorded


def case(capability, x, rows, shape, rules):
    n, m, width = shape
    norm, scale, keep, optional = rules
    words = [f"sm{capability}", x, f"rows_{rows}", f"N{n}", f"M{m}", f"D{width}", norm.name, scale.name]
    words += ["keep_norm"] * keep + ["all_optional"] * optional
    return pytest.param(capability, x, rows, shape, rules, id="-".join(words))


REPRESENTATIVE = [
    case(80, "bf16", "fp32", (1, 64, 2304), PLAIN),
    case(90, "bf16", "fp32", (32, 64, 2304), PLAIN),
    case(90, "fp32", "fp32", (4096, 1024, 2304), LOADED),
    case(80, "bf16", "fp32", (4096, 1024, 2304), LOADED),
    case(100, "bf16", "bf16", (4096, 1024, 2304), PLAIN),
    case(90, "fp16", "fp32", (512, 64, 576), PLAIN),
]
EVERY = [
    *(case(c, x, r, s, p) for c in CAPABILITIES for x, r in PAIRS for s in SHAPES for p in (PLAIN, LOADED)),
    *(case(c, "bf16", "fp32", s, p) for c in CAPABILITIES for s in ((1, 64, 2304), (4096, 64, 2304)) for p in RULES),
    *(case(c, "bf16", "fp32", (n, m, 576), PLAIN) for c in CAPABILITIES for n in (1, 8, 300) for m in (1, 256)),
    *(case(c, "bf16", "bf16", (n, 40, 77), LOADED) for c in CAPABILITIES for n in (1, 17, 300, 2000)),
]


def check(capability, x, rows, shape, rules):
    for launch in launches(x, rows, shape, rules):
        compiled = aot.compile_for(launch, capability)
        name = launch.kernel.__name__
        if shape[2] % 16 == 0:  # the loads of an odd width are not aligned and cannot be staged in shared memory
            assert compiled.spilled_bytes == 0, f"{name} spills: {compiled}"
        assert compiled.shared_bytes <= aot.SHARED_LIMIT[capability], f"{name} does not fit: {compiled}"


@pytest.mark.parametrize(("capability", "x", "rows", "shape", "rules"), REPRESENTATIVE)
def test_compiles_without_spills(capability, x, rows, shape, rules):
    check(capability, x, rows, shape, rules)


@pytest.mark.full
@pytest.mark.parametrize(("capability", "x", "rows", "shape", "rules"), EVERY)
def test_every_configuration_compiles_without_spills(capability, x, rows, shape, rules):
    check(capability, x, rows, shape, rules)


def test_the_representative_cases_launch_every_kernel():
    kernels = {launch.kernel.__name__ for case in REPRESENTATIVE for launch in launches(*case.values[1:])}
    assert kernels == set(KERNELS)


def test_a_spill_is_seen():
    """The gate itself: a large kernel squeezed into fewer warps must report spilled registers."""
    launch = launches("bf16", "fp32", (4096, 1024, 2304), LOADED)[0]
    squeezed = dataclasses.replace(launch, constants=(*launch.constants, ("STEP", 64)), options=(("num_warps", 2),))
    assert aot.compile_for(squeezed, 80).spilled_bytes > 0
