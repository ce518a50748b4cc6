"""steer and steer_slots in CUDA: their logic against fp64, on a machine that runs their threads one by one.

This is no GPU: it shows neither speed nor what weakly ordered memory does. Threads run in three orders, because code
that lacks a barrier comes out right in one order and wrong in another.
"""

import emulated_cuda
import pytest
import sae_cases
import torch
from emulated_cuda import ENOUGH_SHARED, RULES, bits, check
from steer_cases import arguments, expected, near_a_jump

from sparsesteer._layout import Column, InputNorm, OutputScale

if emulated_cuda.missing():
    pytest.skip(emulated_cuda.missing(), allow_module_level=True)


@pytest.fixture(scope="module")
def cuda():
    return emulated_cuda.load()


@pytest.fixture(params=("rising", "shuffled"), autouse=True)
def order(request, cuda):
    cuda.set_device(3, ENOUGH_SHARED, request.param)
    return request.param


def check_steer(cuda, given):
    clear = ~near_a_jump(given)
    emulated_cuda.compare(cuda.steer_cuda(*given.values())[clear], expected(given)[clear], given["into"][clear])


def test_the_machine_shows_a_missing_barrier(cuda, order):
    alone = [(i + 1) % 64 for i in range(64)]
    assert cuda.neighbours(64, True) == alone
    assert cuda.neighbours(64, False) != alone


@pytest.mark.parametrize(("input_norm", "scale_rule", "keep_norm"), RULES)
def test_steer_rules(cuda, input_norm, scale_rule, keep_norm):
    given = arguments(
        6, 9, 64, 40, input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm, token_strength=True, bias=True
    )
    if scale_rule == OutputScale.GAP_FILL:  # as the method uses it, d >= 0: a sum that cancels has no accurate inverse
        given["delta_bias"] = None
        given["rows"][:, Column.FLOOR] = 0
    check_steer(cuda, given)


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 64, None), (1, 5, 77, None), (2, 4, 200, 136), (4, 0, 64, None), (5, 40, 65, 33), (32, 17, 72, None)],
    ids=lambda s: "N{}xM{}xD{}xO{}".format(*s),
)
def test_steer_shapes(cuda, shape, dtype, rows):
    n, m, width, out_width = shape
    check_steer(
        cuda,
        arguments(
            n, m, width, out_width, dtype=dtype, row_dtype=rows, residual=n % 2 == 0, bias=m % 2 == 0, seed=n,
            keep_norm=m == 40,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 4), (1, 5), (9, 70)])
def test_steer_in_place_gives_the_same_bits(cuda, n, m):
    """Few rows take the form without a wait, unless the result overwrites what is read."""
    given = arguments(n, m, 72, seed=n)
    out = cuda.steer_cuda(*given.values())
    cuda.steer_out_cuda(*given.values(), given["x"])
    assert torch.equal(bits(given["x"]), bits(out))


def test_steer_of_a_token_does_not_depend_on_its_company(cuda):
    given = arguments(7, 11, 200, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD, residual=True)
    together = cuda.steer_cuda(*given.values())
    for multiprocessors in (1, 8):
        cuda.set_device(multiprocessors, ENOUGH_SHARED, "rising")
        for i in range(7):
            one = given | {name: given[name][i : i + 1] for name in ("x", "into", "residual")}
            assert torch.equal(bits(cuda.steer_cuda(*one.values())), bits(together[i : i + 1]))


def test_steer_reads_rows_with_strides(cuda):
    given = arguments(5, 6, 64)
    wide = torch.randn(5, 80)
    wide[:, 8:72] = given["x"]
    assert torch.equal(
        cuda.steer_cuda(*(given | {"x": wide[:, 8:72], "into": wide[:, 8:72]}).values()),
        cuda.steer_cuda(*given.values()),
    )


@pytest.mark.parametrize("keep_norm", [False, True], ids=["", "keep_norm"])
def test_steer_leaves_other_tokens_bits(cuda, keep_norm):
    given = arguments(6, 5, 64, keep_norm=keep_norm, token_strength=True)
    given["into"] = given["into"].clone()
    given["into"][1, ::3], given["into"][1, 1::3] = -0.0, float("nan")  # of strength 0
    given["rows"][:, Column.C0 : Column.GATE] = 0
    given["rows"][:, Column.GATE] = 0
    assert torch.equal(bits(cuda.steer_cuda(*given.values())), bits(given["into"]))


@pytest.mark.parametrize(("input_norm", "scale_rule", "keep_norm"), RULES)
def test_slots_rules(cuda, input_norm, scale_rule, keep_norm):
    given = sae_cases.slots_arguments(
        9, 64, 12, [5, 0, 7, 3], input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm,
        activation="relu" if scale_rule == OutputScale.GAP_FILL else "mixed", residual=True, seed=3,
    )  # fmt: skip
    check(cuda, "steer_slots", given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "d", "sizes", "slot"),
    [
        (1, 64, [3], [0]),
        (1, 64, [3], [-1]),
        (32, 72, [6, 6], None),
        (32, 65, [2] * 32, list(range(32))),
        (13, 64, [0, 40, 1], [1] * 13),
        (7, 64, [4, 2], [5, 0, -7, 1, 2, 0, 1]),
        (6, 96, [100, 1], None),
    ],
    ids=str,
)
def test_slots_shapes(cuda, n, d, sizes, slot, dtype):
    given = sae_cases.slots_arguments(
        n, d, 20, sizes, slot, token_strength=n > 5, keep_norm=n == 13, dtype=dtype, row_dtype=dtype, seed=n
    )
    check(cuda, "steer_slots", given)


def test_slots_give_the_bits_of_steer_and_work_in_place(cuda):
    given = sae_cases.slots_arguments(9, 64, 12, [5, 6], [0, 1] * 4 + [-1])
    out = cuda.steer_slots_cuda(*given.values())
    for s in (0, 1):
        first, count, biased = given["slots"][s].tolist()
        shared = given["entry_row"][first : first + count].long()
        tables = given["encoder"][shared], given["decoder"][shared], given["rows"][first : first + count]
        bias = given["slot_bias"][s] if biased else None
        alone = cuda.steer_cuda(given["x"], given["into"], None, *tables, bias, None, 0.75, 0, 0, 1.5, False)
        assert torch.equal(bits(out[s:8:2]), bits(alone[s:8:2]))
    cuda.steer_slots_out_cuda(*given.values(), given["into"])
    assert torch.equal(bits(given["into"]), bits(out))


def test_slots_outside_the_tables_leave_tokens_alone(cuda):
    given = sae_cases.slots_arguments(4, 64, 5, [2, 2, 2], [0, 1, 2, 0])
    given["slots"][0] = torch.tensor([-1, 2, 0])
    given["slots"][1] = torch.tensor([5, 2, 0])
    given["slots"][2] = torch.tensor([0, -1, 0])
    assert torch.equal(cuda.steer_slots_cuda(*given.values()), given["into"])
