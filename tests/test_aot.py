"""Every kernel that a call can launch compiles for real GPUs, without spilled registers and within shared memory.

Needs no GPU and no driver: the launchers run on CPU tensors, their launches are recorded and compiled.
"""

import dataclasses
import os

import pytest

aot = pytest.importorskip("aot", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

import aot_encode  # noqa: E402
import aot_steer  # noqa: E402

pytestmark = pytest.mark.triton

OPS = (
    aot_steer.OP,
    aot_encode.OP,
)


def cases(kind):
    return [pytest.param(op, case, id=f"{op.name}-{case.id}") for op in OPS for case in getattr(op, kind)]


def check(op, case):
    for launch in op.launches(case):
        compiled = aot.compile_for(launch, case.capability)
        name = launch.kernel.__name__
        if case.aligned:
            assert compiled.spilled_bytes == 0, f"{name} spills: {compiled}"
        assert compiled.shared_bytes <= aot.SHARED_LIMIT[case.capability], f"{name} does not fit: {compiled}"


@pytest.mark.parametrize(("op", "case"), cases("sample"))
def test_compiles_without_spills(op, case):
    check(op, case)


@pytest.mark.full
@pytest.mark.parametrize(("op", "case"), cases("every"))
def test_every_configuration_compiles_without_spills(op, case):
    check(op, case)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_sample_launches_every_kernel(op):
    launched = {launch.kernel.__name__ for case in op.sample for launch in op.launches(case)}
    assert launched == {name for _, names in op.kernels for name in names}


def test_a_spill_is_seen():
    """The gate itself: a large kernel squeezed into fewer warps must report spilled registers."""
    case = aot_steer.case(90, "bf16", "fp32", (4096, 1024, 2304), aot_steer.LOADED)
    launch = aot_steer.OP.launches(case)[0]
    squeezed = dataclasses.replace(launch, constants=(*launch.constants, ("STEP", 64)), options=(("num_warps", 2),))
    assert aot.compile_for(squeezed, 80).spilled_bytes > 0
