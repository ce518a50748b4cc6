"""The CUDA kernels' logic against the reference in fp64, on a machine that runs their threads one by one.

This is no GPU: it shows neither speed nor what weakly ordered memory does. Threads run in three orders, because code
that lacks a barrier comes out right in one order and wrong in another.
"""

import emulated_cuda
import pytest
import sae_cases
import torch
from steer_cases import arguments, edit_error, expected, near_a_jump, rounding_excess

from sparsesteer._layout import Column, InputNorm, OutputScale

if emulated_cuda.missing():
    pytest.skip(emulated_cuda.missing(), allow_module_level=True)

ORDERS = ("rising", "falling", "shuffled")
ENOUGH_SHARED = 160 << 10
EDIT_ERROR = 1e-5
NARROW_EXCESS = 1e-2  # of the row's edit, beyond half an ulp of the output
RULES = [
    pytest.param(norm, scale, keep, id=f"{norm.name}-{scale.name}-{'keep' if keep else 'free'}")
    for norm in InputNorm
    for scale in OutputScale
    for keep in (False, True)
]
NORMS = [pytest.param(norm, id=norm.name) for norm in InputNorm]


@pytest.fixture(scope="module")
def cuda():
    return emulated_cuda.load()


@pytest.fixture(params=ORDERS[1:], autouse=True)
def order(request, cuda):
    cuda.set_device(3, ENOUGH_SHARED, request.param)
    return request.param


def compare(out, want, into):
    if out.dtype == torch.float32:
        assert edit_error(out, want, into) < EDIT_ERROR
    else:
        assert rounding_excess(out, want, into) < NARROW_EXCESS


def check_steer(cuda, given):
    out, clear = cuda.steer_cuda(*given.values()), ~near_a_jump(given)
    compare(out[clear], expected(given)[clear], given["into"][clear])
    return out


def check(cuda, op, given, clear=None):
    out, want, into = getattr(cuda, f"{op}_cuda")(*given.values()), sae_cases.expected(op, given), given["into"]
    clear = torch.ones(len(out), dtype=torch.bool) if clear is None else clear
    assert clear.float().mean() > 0.8 or len(clear) < 10
    compare(out[clear], want[clear], into[clear])
    return out


def bits(tensor):
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


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


@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
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
        alone = cuda.steer_cuda(
            given["x"], given["into"], None, given["encoder"][shared], given["decoder"][shared],
            given["rows"][first : first + count], given["slot_bias"][s] if biased else None, None, 0.75, 0, 0, 1.5, False,
        )  # fmt: skip
        assert torch.equal(bits(out[s:8:2]), bits(alone[s:8:2]))
    cuda.steer_slots_out_cuda(*given.values(), given["into"])
    assert torch.equal(bits(given["into"]), bits(out))


def test_slots_outside_the_tables_leave_tokens_alone(cuda):
    given = sae_cases.slots_arguments(4, 64, 5, [2, 2, 2], [0, 1, 2, 0])
    given["slots"][0] = torch.tensor([-1, 2, 0])
    given["slots"][1] = torch.tensor([5, 2, 0])
    given["slots"][2] = torch.tensor([0, -1, 0])
    assert torch.equal(cuda.steer_slots_cuda(*given.values()), given["into"])


@pytest.mark.parametrize(("input_norm", "scale_rule", "keep_norm"), RULES)
def test_topk_rules(cuda, input_norm, scale_rule, keep_norm):
    given = sae_cases.topk_arguments(
        3, 64, 60, 12, 15, input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm, residual=True, seed=5
    )
    check(cuda, "steer_topk", given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "d", "f", "m", "k"),
    [
        (1, 64, 50, 5, 7),
        (2, 8, 3, 3, 1),
        (3, 136, 200, 40, 200),
        (8, 64, 301, 70, 9),
        (5, 72, 90, 0, 3),
        (4, 64, 1, 1, 1),
    ],
)
def test_topk_shapes_in_ties(cuda, n, d, f, m, k, dtype):
    given = sae_cases.topk_arguments(
        n, d, f, m, k, whole=True, duplicates=True, dtype=dtype, row_dtype=dtype, bias=n == 2, token_strength=n > 2,
        seed=n,
    )  # fmt: skip
    check(cuda, "steer_topk", given)


def ranked(given):
    """Features of token 0 by falling z, lower index first, and z itself."""
    z = sae_cases.pre_activations({**given, "rows": torch.zeros(len(given["encoder"]), 10)})[0] + given["encoder_bias"]
    return z.sort(descending=True, stable=True).indices


@pytest.mark.parametrize("whole", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("k", [1, 6, 12])
def test_topk_at_the_border(cuda, k, whole):
    given = sae_cases.topk_arguments(1, 64, 90, 4, k, whole=whole, duplicates=whole, seed=k)
    first = ranked(given)
    features = first[[max(0, k - 2), k - 1, k, k + 1]].unique()
    given = sae_cases.topk_arguments(
        1, 64, 90, len(features), k, features=features, whole=whole, duplicates=whole, seed=k
    )
    given["rows"][:, Column.C0 :] = torch.tensor([0.0, -1.0, 0.0, 0.0, 0.0])  # ablate
    out = check(cuda, "steer_topk", given)
    assert not torch.equal(out, given["into"])


def test_topk_without_a_positive_feature_still_sets_what_is_not_gated(cuda):
    given = sae_cases.topk_arguments(3, 64, 50, 6, 5)
    given["encoder_bias"].fill_(-100)
    check(cuda, "steer_topk", given)


def test_topk_bits_depend_on_nothing_but_the_token(cuda):
    given = sae_cases.topk_arguments(6, 64, 120, 20, 11, input_norm=InputNorm.CONSTANT_NORM)
    together = cuda.steer_topk_cuda(*given.values())
    cuda.set_device(7, ENOUGH_SHARED, "falling")
    for i in range(6):
        one = given | {name: given[name][i : i + 1] for name in ("x", "into")}
        assert torch.equal(bits(cuda.steer_topk_cuda(*one.values())), bits(together[i : i + 1]))


@pytest.mark.parametrize("keep_norm", [False, True], ids=["", "keep_norm"])
@pytest.mark.parametrize("input_norm", NORMS)
@pytest.mark.parametrize("k", [0, 9])
def test_reconstruct_rules(cuda, k, input_norm, keep_norm):
    given = sae_cases.reconstruct_arguments(
        3, 64, 70, 12, k, input_norm=input_norm, keep_norm=keep_norm, activation="mixed", residual=True, seed=2,
        token_strength=True,
    )  # fmt: skip
    check(cuda, "steer_reconstruct", given, sae_cases.clear_tokens(given, "table"))


@pytest.mark.parametrize("activation", sae_cases.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "d", "f", "m", "k"),
    [
        (1, 64, 50, 5, 7),
        (2, 8, 3, 3, 1),
        (3, 136, 200, 40, 200),
        (8, 64, 301, 70, 9),
        (5, 72, 90, 0, 0),
        (4, 64, 1, 1, 1),
    ],
)
def test_reconstruct_shapes_in_ties(cuda, n, d, f, m, k, dtype, activation):
    given = sae_cases.reconstruct_arguments(
        n, d, f, m, k, whole=True, duplicates=True, activation=activation, dtype=dtype, row_dtype=dtype, seed=n
    )
    check(cuda, "steer_reconstruct", given)


@pytest.mark.parametrize("multiprocessors", [1, 4, 9])
@pytest.mark.parametrize("k", [1, 5, 36, 69])
def test_reconstruct_takes_the_lower_indices_of_equals(cuda, k, multiprocessors, order):
    """All pre-activations are equal, so that the border runs through every block."""
    cuda.set_device(multiprocessors, ENOUGH_SHARED, order)
    given = sae_cases.reconstruct_arguments(2, 64, 70, 8, k)
    given["encoder"].zero_()
    given["table"][:, Column.BIAS] = 1.0
    check(cuda, "steer_reconstruct", given)


def test_reconstruct_counts_both_zeros_as_one(cuda):
    given = sae_cases.reconstruct_arguments(1, 64, 40, 3, 20, activation="identity")
    given["encoder"].zero_()
    given["table"][:, Column.BIAS] = torch.where(torch.arange(40) % 2 == 0, -0.0, 0.0)
    given["table"][:, Column.SHIFT] = 1.0
    check(cuda, "steer_reconstruct", given)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_reconstruct_with_nothing_and_with_everything_active(cuda, density):
    given = sae_cases.reconstruct_arguments(3, 64, 70, 12, activation="relu")
    given["table"][:, Column.BIAS] += 100 if density else -100
    check(cuda, "steer_reconstruct", given)


@pytest.mark.parametrize("op", ["steer_topk", "steer_reconstruct"])
def test_bits_do_not_depend_on_the_order_of_threads(cuda, op):
    given = getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(5, 64, 120, 20, 11)
    results = []
    for order in ORDERS:
        cuda.set_device(4, ENOUGH_SHARED, order)
        results.append(getattr(cuda, f"{op}_cuda")(*given.values()))
    assert torch.equal(bits(results[0]), bits(results[1])) and torch.equal(bits(results[0]), bits(results[2]))


@pytest.mark.parametrize("op", ["steer_topk", "steer_reconstruct"])
def test_a_token_that_is_not_a_number_stays_alone(cuda, op):
    given = getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(
        3, 64, 50, 6, 5, input_norm=InputNorm.LAYER_NORM
    )
    clean = getattr(cuda, f"{op}_cuda")(*given.values())
    given["x"][1] = float("nan")
    assert torch.equal(bits(getattr(cuda, f"{op}_cuda")(*given.values())[::2]), bits(clean[::2]))
