"""The compiled ``activations`` and ``activations_topk``: steer's own numbers, on every instruction set there is."""

import math

import pytest
import torch
from activation_cases import activation_arguments, showing
from instruction_sets import simd  # noqa: F401 - runs every test on each instruction set
from sae_cases import expected, reconstruct_arguments, topk_arguments
from steer_cases import arguments, near_a_jump
from test_steer_topk_native import with_clear_ranks

from sparsesteer import _native
from sparsesteer._layout import Column, InputNorm

if _native.extension is None:
    pytest.skip(_native.reason, allow_module_level=True)

pytestmark = pytest.mark.native

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12}


def op_of(given):
    return "activations_topk" if "features" in given else "activations"


def run(given):
    return getattr(_native.extension, op_of(given))(*given.values())


def check(steering, clear):
    """Against the reference in fp64, and bit for bit against what ``steer`` writes."""
    given = activation_arguments(steering)
    f, want = run(given), expected(op_of(given), given)
    compute = torch.float64 if given["x"].dtype == torch.float64 else torch.float32
    assert f.dtype == compute and f.shape == want.shape
    tolerance = TOLERANCE.get(given["x"].dtype, 1e-5)
    torch.testing.assert_close(f[clear].double(), want[clear], rtol=tolerance, atol=tolerance)
    steer = _native.extension.steer_topk if "features" in steering else _native.extension.steer
    seen = steer(*showing(steering).values())
    assert torch.equal(f.to(seen.dtype), seen)
    return f


def of_rows(n, m, width, dtype=torch.float32, **options):
    steering = arguments(n, m, width, dtype=dtype, seed=n, **options)
    if dtype == torch.float64:
        tables = ("encoder", "decoder", "rows")
        steering |= {name: steering[name].double() for name in tables}
    return steering


SHAPES = [(1, 1, 64), (1, 5, 77), (1, 64, 576), (3, 17, 65), (32, 33, 200), (65, 9, 129), (131, 70, 96)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}xM{}xD{}".format(*s))
def test_shapes(shape, dtype):
    steering = of_rows(*shape, dtype=dtype, residual=shape[0] % 2 == 0)
    f = check(steering, ~near_a_jump(steering))
    assert shape[1] == 1 or (f != 0).any()


@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_norms(input_norm, residual):
    steering = of_rows(13, 21, 200, input_norm=input_norm, residual=residual)
    check(steering, ~near_a_jump(steering))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bf16_rows(dtype):
    steering = of_rows(9, 30, 200, dtype=dtype, row_dtype=torch.bfloat16)
    check(steering, ~near_a_jump(steering))


TOPK_SHAPES = [(1, 576, 80, 8, 9), (7, 65, 150, 1, 1), (33, 40, 200, 70, 30), (101, 24, 90, 12, 7), (5, 33, 60, 12, 60)]


@pytest.mark.parametrize("shape", TOPK_SHAPES, ids=lambda s: "N{}xD{}xF{}xM{}xK{}".format(*s))
@pytest.mark.parametrize("whole", [False, True])
def test_topk(shape, whole):
    steering = topk_arguments(*shape, whole=whole, residual=shape[0] % 2 == 1, duplicates=whole)
    f = check(steering, slice(None) if whole else with_clear_ranks(steering))
    assert whole or shape[3] == 1 or (f != 0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_topk_dtypes(dtype, row_dtype):
    if dtype == torch.float64:
        row_dtype = torch.float32  # "the compute dtype" in these cases
    steering = topk_arguments(9, 48, 120, 10, 20, dtype=dtype, row_dtype=row_dtype, input_norm=InputNorm.CONSTANT_NORM)
    check(steering, with_clear_ranks(steering))


@pytest.mark.parametrize("k", [1, 2, 19, 20, 21, 39, 40])
def test_topk_ties(k):
    """Every feature twice: of the pair at the border the lower index is active, the higher is not."""
    steering = topk_arguments(6, 33, 40, 40, k, whole=True, duplicates=True, features=torch.arange(40))
    f = check(steering, slice(None))
    assert ((f != 0).sum(1) <= k).all()


def test_topk_counts_ranks_beyond_its_features():
    steering = topk_arguments(5, 40, 300, 300, 50, features=torch.arange(300))
    everything = run(activation_arguments(steering))
    some = torch.tensor([299, 3, 17, 4])  # in any order
    part = activation_arguments(steering) | {"features": some, "rows": steering["rows"][some]}
    assert torch.equal(run(part), everything[:, some])


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated", "identity", "mixed"])
@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_whole_sae_without_topk(activation, row_dtype):
    """k = 0: what ``steer_reconstruct`` edits, below zero too, where tokens and rows are multiplied in pairs too."""
    dtype = row_dtype
    given = reconstruct_arguments(21, 48, 120, 10, activation=activation, dtype=dtype, row_dtype=row_dtype)
    bias = given["table"][:, Column.BIAS]
    asked = {
        "x": given["x"], "residual": None, "encoder": given["encoder"], "encoder_bias": bias,
        "features": given["features"], "k": 0, "rows": given["rows"], "input_norm": given["input_norm"],
    }  # fmt: skip
    f = run(asked)
    values, indices, _ = _native.extension.encode(given["x"], given["encoder"], given["table"], 0, 120, 0)
    dense = torch.zeros(21, 121).scatter(1, indices.long() % 121, values)[:, :120]  # -1 falls off
    assert torch.equal(f, dense[:, given["features"]])
    assert activation != "identity" or (f < 0).any()


@pytest.mark.parametrize("n, m", [(0, 5), (0, 0), (4, 0)])
def test_nothing_to_do(n, m):
    assert run(activation_arguments(arguments(n, m, 64))).shape == (n, m)
    assert run(activation_arguments(topk_arguments(n, 33, 60, m, 8))).shape == (n, m)


def with_x(given, x):
    return given | {"x": x}


@pytest.mark.parametrize("case", ["rows", "topk"])
@pytest.mark.parametrize("n", [1, 3, 70, 140])
def test_same_bits_in_any_batch_and_number_of_threads(n, case):
    norm = {"input_norm": InputNorm.LAYER_NORM}
    steering = arguments(n, 40, 200, **norm) if case == "rows" else topk_arguments(n, 77, 150, 12, 20, **norm)
    given = activation_arguments(steering)
    whole = run(given)
    assert torch.equal(run(given), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run(given), whole)
    finally:
        torch.set_num_threads(threads)
    for t in range(0, n, 17):
        assert torch.equal(run(with_x(given, given["x"][t : t + 1]))[0], whole[t])


@pytest.mark.parametrize("case", ["rows", "topk"])
def test_strided_tensors(case):
    steering = (
        arguments(6, 10, 64, residual=True) if case == "rows" else topk_arguments(6, 64, 90, 10, 9, residual=True)
    )
    given = activation_arguments(steering)
    want = run(given)
    wide = {name: torch.cat([given[name], given[name]], -1)[:, :64] for name in ("x", "residual")}
    assert torch.equal(run(given | wide), want)
    columns = {name: given[name].T.contiguous().T for name in ("x", "residual", "encoder", "rows")}
    assert torch.equal(run(given | columns), want)


@pytest.mark.parametrize("case", ["rows", "topk"])
def test_a_broken_token_stays_alone(case):
    given = activation_arguments(arguments(8, 12, 64) if case == "rows" else topk_arguments(8, 33, 60, 12, 9))
    clean, x = run(given), given["x"].clone()
    x[2, 5], x[4, 7] = math.nan, math.inf
    others = [0, 1, 3, 5, 6, 7]
    assert torch.equal(run(with_x(given, x))[others], clean[others])


def test_errors():
    given = activation_arguments(arguments(2, 3, 8))
    with pytest.raises(RuntimeError, match=r"activations: rows should have shape \[3, 10\], got \[2, 10\]"):
        run(given | {"rows": given["rows"][:2]})
    with pytest.raises(RuntimeError, match=r"activations: encoder should have shape \[3, 8\], got \[3, 7\]"):
        run(given | {"encoder": given["encoder"][:, :7]})
    with pytest.raises(RuntimeError, match="activations: residual should have shape"):
        run(given | {"residual": given["x"][:1]})
    whole = activation_arguments(topk_arguments(2, 8, 10, 3, 4))
    with pytest.raises(RuntimeError, match="activations_topk: feature 10 is out of range, there are 10"):
        run(whole | {"features": torch.tensor([0, 1, 10])})
    with pytest.raises(RuntimeError, match="activations_topk: k should not be negative, got -1"):
        run(whole | {"k": -1})
    with pytest.raises(RuntimeError, match=r"activations_topk: encoder_bias should have shape \[10\], got \[9\]"):
        run(whole | {"encoder_bias": whole["encoder_bias"][:9]})
