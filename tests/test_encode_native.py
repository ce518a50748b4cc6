"""The compiled ``encode`` and ``encode_screened`` against the reference in fp64, and against each other."""

import math

import pytest
import torch
from instruction_sets import simd  # noqa: F401 - runs every test on each instruction set
from sae_cases import ACTIVATIONS, clear_tokens, encode_arguments, expected, in_fp64

from sparsesteer import _native, reference
from sparsesteer._layout import Column, InputNorm
from sparsesteer.screen import Screen

if _native.extension is None:
    pytest.skip(_native.reason, allow_module_level=True)

pytestmark = pytest.mark.native

ERROR = {torch.float32: 1e-5, torch.float64: 1e-13}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROW_DTYPES = (torch.float32, torch.bfloat16)


def run(given):
    return _native.extension.encode(*given.values())


def run_screened(given):
    screen = Screen.of(given["encoder"])
    x, encoder, rows, *rule = given.values()
    return _native.extension.encode_screened(x, encoder, rows, screen.codes, screen.scale, screen.error, *rule)


def check(given):
    """Every index with its own activation in falling order, the largest of them, the rest padding."""
    clear = clear_tokens(given)
    assert clear.float().mean() > 0.6
    values, indices, counts = run(given)
    want, _, active = expected("encode", given)
    wide = in_fp64(given)
    dense = reference.dense_codes(wide["x"], wide["encoder"], wide["rows"], given["k"], given["input_norm"])
    present = torch.arange(given["width"]) < active[:, None]
    assert torch.equal(counts[clear], active[clear])
    assert torch.equal((indices >= 0)[clear], present[clear])
    own = dense.gather(1, indices.clamp(min=0).long())
    bound = ERROR[values.dtype] * want.abs().max().clamp(min=1)
    assert ((own - values) * present)[clear].abs().max() <= bound
    assert (want - values)[clear].abs().max() <= bound
    assert not values[~present].any()
    assert (values[:, 1:] <= values[:, :-1])[indices[:, 1:] >= 0].all()


def check_exactly(given, encode=run):
    """Whole numbers: no rounding anywhere, so that even the order of ties is the reference's."""
    for mine, want in zip(encode(given), expected("encode", given), strict=True):
        assert torch.equal(mine.double(), want.double())


def same(some, others):
    assert all(map(torch.equal, some, others))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("k", [0, 9])
def test_every_activation(activation, k):
    check(encode_arguments(7, 40, 150, k, 150, activation=activation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row_dtype", ROW_DTYPES, ids=str)
@pytest.mark.parametrize("k", [0, 8])
def test_dtypes(dtype, row_dtype, k):
    if dtype == torch.float64:
        row_dtype = torch.float32  # "the compute dtype" in these cases
    check(encode_arguments(5, 40, 150, k, 60, dtype=dtype, row_dtype=row_dtype))
    check_exactly(encode_arguments(5, 37, 150, k, 60, dtype=dtype, row_dtype=row_dtype, whole=True, duplicates=True))


BF16 = {"dtype": torch.bfloat16, "row_dtype": torch.bfloat16}  # multiplied in pairs, where the machine can


@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 64, 95, 2304])
@pytest.mark.parametrize("n", [1, 2, 13])
def test_bf16_tokens_with_bf16_rows(n, width):
    check(encode_arguments(n, width, 90, 0, 90, activation="identity", **BF16))
    check_exactly(encode_arguments(n, width, 90, 7, whole=True, duplicates=True, **BF16))


@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
@pytest.mark.parametrize("k", [0, 9])
def test_input_norms(k, input_norm):
    check(encode_arguments(4, 77, 150, k, 50, input_norm=input_norm))


SHAPES = [
    (0, 77, 90, 5), (1, 576, 70, 5), (1, 2304, 33, 4), (2, 1, 33, 4), (7, 65, 1, 1), (8, 24, 17, 3), (33, 40, 200, 1),
    (95, 16, 40, 40), (97, 16, 50, 7), (601, 9, 37, 5),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}xD{}xF{}xK{}".format(*s))
@pytest.mark.parametrize("duplicates", [False, True])
def test_shapes_and_ties(shape, duplicates):
    n, d, f, k = shape
    check_exactly(encode_arguments(n, d, f, k, whole=True, duplicates=duplicates))
    check_exactly(encode_arguments(n, d, f, 0, 12, activation="mixed", whole=True, duplicates=duplicates))


@pytest.mark.parametrize("k", [1, 2, 63, 64, 149, 150, 400])
def test_every_k(k):
    check_exactly(encode_arguments(3, 33, 150, k, min(k, 150), whole=True))


@pytest.mark.parametrize("activation", ["jumprelu", "identity", "mixed"])
def test_topk_of_rows_that_are_not_relu(activation):
    """The k largest z are chosen first; which of them are active, and in which order, the table says."""
    check_exactly(encode_arguments(3, 33, 150, 20, 24, activation=activation, whole=True))


def test_rising_activations_push_out_all_that_came_before():
    given = encode_arguments(2, 8, 4000, 5, whole=True)
    given["rows"][:, Column.BIAS] = torch.arange(4000) // 3
    check_exactly(given)
    check_exactly(given | {"k": 0})


def test_a_token_of_zeros_ties_everywhere():
    given = encode_arguments(2, 16, 1000, 4, 4, whole=True)
    given["x"].zero_()
    given["rows"][:, Column.BIAS] = 1.0
    check_exactly(given)
    assert torch.equal(run(given)[1], torch.arange(4).int().expand(2, 4))


def test_more_active_features_than_columns():
    given = encode_arguments(3, 40, 500, 0, 7, activation="identity")
    check(given)
    assert (run(given)[2] == 500).all()
    values, indices, counts = run(given | {"width": 0})
    assert values.shape == indices.shape == (3, 0) and (counts == 500).all()


@pytest.mark.parametrize("encode", [run, run_screened])
def test_nothing_active(encode):
    given = encode_arguments(3, 20, 100, 0, 10)
    given["rows"][:, Column.THRESHOLD] = math.inf
    values, indices, counts = encode(given)
    assert not values.any() and (indices == -1).all() and not counts.any()
    check_exactly(given | {"k": 5}, encode)


@pytest.mark.parametrize("k", [0, 6])
@pytest.mark.parametrize("encode", [run, run_screened])
def test_huge_and_denormal_values(k, encode):
    huge = encode_arguments(2, 16, 60, k, 20, whole=True)
    huge["x"] *= 2.0**100
    check_exactly(huge, encode)
    denormal = encode_arguments(2, 16, 60, k, 20, whole=True)
    denormal["x"] *= 2.0**-145
    denormal["rows"][:, Column.BIAS] = 0
    check_exactly(denormal, encode)


def test_negative_zero_ties_with_zero():
    given = encode_arguments(2, 16, 60, 10, 10, activation="identity", whole=True)
    given["x"].zero_()
    given["rows"][:, Column.BIAS] = torch.where(torch.arange(60) % 2 == 0, -0.0, 0.0)
    given["rows"][:, Column.SHIFT] = 1.0  # f = 1 everywhere: which ten are first shows
    check_exactly(given)


@pytest.mark.parametrize("k", [0, 9])
@pytest.mark.parametrize("n", [1, 7, 130])
@pytest.mark.parametrize("d", [77, 900])  # within a chunk of columns (packed_dots.h), and beyond
@pytest.mark.parametrize("dtypes", [{}, BF16], ids=["fp32", "bf16"])
def test_same_bits_in_any_batch_and_number_of_threads(n, d, k, dtypes):
    given = encode_arguments(n, d, 150, k, 20, input_norm=InputNorm.LAYER_NORM, **dtypes)
    whole = run(given)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        same(run(given), whole)
    finally:
        torch.set_num_threads(threads)
    for t in range(0, n, 11):
        same(run(given | {"x": given["x"][t : t + 1]}), [part[t : t + 1] for part in whole])


@pytest.mark.parametrize("k", [0, 6])
def test_a_broken_token_stays_alone(k):
    given = encode_arguments(8, 33, 100, k, 6)
    clean = run(given)
    given["x"][2, 5], given["x"][4, 7] = math.nan, math.inf
    others = [0, 1, 3, 5, 6, 7]
    same([part[others] for part in run(given)], [part[others] for part in clean])


def test_strides():
    given = encode_arguments(4, 33, 100, 6, 6, whole=True)
    want = run(given)
    x = torch.full((4, 50), math.nan)
    x[:, 7:40] = given["x"]
    strided = given | {"x": x[:, 7:40], "encoder": given["encoder"].T.contiguous().T}
    strided["rows"] = given["rows"].repeat(1, 2)[:, :10]
    same(run(strided), want)


@pytest.mark.parametrize("shape", [(1, 576, 700, 32), (2, 129, 300, 5), (4, 77, 91, 20), (5, 33, 60, 4)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtypes", [{}, {"row_dtype": torch.bfloat16}, BF16], ids=["fp32", "bf16 rows", "bf16"])
def test_the_screened_form_gives_the_same_bits(shape, activation, dtypes):
    n, d, f, k = shape
    for whole, duplicates in ((False, False), (False, True), (True, True)):
        given = encode_arguments(n, d, f, k, activation=activation, whole=whole, duplicates=duplicates, **dtypes)
        same(run_screened(given), run(given))
        given |= {"k": 0, "width": 30, "input_norm": int(InputNorm.CONSTANT_NORM)}
        same(run_screened(given), run(given))


def test_the_screen_is_believed():
    """A screen that lies about its error hides what it should not: the exact rows of others are never read."""
    given = encode_arguments(1, 64, 200, 4)
    screen = Screen.of(given["encoder"])
    largest = run(given)[1][0, 0]
    lying = screen.codes.clone()
    lying[largest] = 0
    x, encoder, rows, *rule = given.values()
    found = _native.extension.encode_screened(x, encoder, rows, lying, screen.scale, screen.error, *rule)
    assert largest not in found[1]


def test_errors():
    given = encode_arguments(2, 8, 10, 3)
    with pytest.raises(RuntimeError, match="encode: rows should have shape \\[10, 10\\], got \\[9, 10\\]"):
        run(given | {"rows": given["rows"][:9]})
    with pytest.raises(RuntimeError, match="encode: k should not be negative, got -1"):
        run(given | {"k": -1})
    with pytest.raises(RuntimeError, match="encode: encoder should be Float or bf16, got Double"):
        run(given | {"encoder": given["encoder"].double()})
