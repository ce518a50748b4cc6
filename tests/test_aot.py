"""Every kernel that a call can launch compiles for real GPUs, without spilled registers and within shared memory.

Needs no GPU and no driver: the launchers run on CPU tensors, their launches are recorded and compiled.
"""

import dataclasses
import os

import pytest

aot = pytest.importorskip("aot", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

import aot_activations  # noqa: E402
import aot_decode  # noqa: E402
import aot_encode  # noqa: E402
import aot_steer  # noqa: E402
import aot_steer_reconstruct  # noqa: E402
import aot_steer_slots  # noqa: E402
import aot_steer_topk  # noqa: E402

pytestmark = pytest.mark.triton

OPS = (
    aot_steer.OP,
    aot_encode.OP,
    aot_steer_topk.OP,
    aot_decode.OP,
    aot_steer_slots.OP,
    aot_steer_reconstruct.OP,
    aot_activations.OP,
    aot_activations.TOPK,
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


STREAMS = {"edited_pre_activations", "count_before", "write_sample", "write_candidates", "recompute_candidates"}


def check_one_order(n, rows, capability):
    """Equal rows of an encoder give equal bits only if all kernels whose sums are compared multiply in one way."""
    edited = (aot_steer_topk.COUNTED, aot_steer_topk.SELECTED)
    cases = [aot_steer_topk.case(capability, "bf16", rows, (n, 65536, 2304), m) for m in edited]
    launches = {launch for case in cases for launch in aot_steer_topk.OP.launches(case)}
    ways = {
        launch.kernel.__name__: aot.compile_for(launch, capability).products
        for launch in launches
        if launch.kernel.__name__ in STREAMS
    }
    assert ways.keys() == STREAMS
    one = ways["edited_pre_activations"]
    assert one and all(way[: len(one)] == one for way in ways.values())
    # picking one token's numbers out of a tile is a sum too, over zeros
    assert {name for name, way in ways.items() if way != one} <= {"recompute_candidates"}


@pytest.mark.parametrize(("n", "rows"), [(1, "bf16"), (1024, "bf16"), (32, "fp32")])
def test_what_is_compared_is_summed_in_one_order(n, rows):
    check_one_order(n, rows, 90)


@pytest.mark.full
@pytest.mark.parametrize("capability", aot.CAPABILITIES)
@pytest.mark.parametrize("rows", ["bf16", "fp32"])
@pytest.mark.parametrize("n", [1, 8, 32, 128, 1024])
def test_whatever_is_compared_is_summed_in_one_order(n, rows, capability):
    check_one_order(n, rows, capability)
