"""The compiled kernels against the reference in fp64, every instruction set that this machine has."""

import pytest
import torch
from steer_cases import arguments, edit_error, expected, near_a_jump, rounding_excess

from sparsesteer import _native
from sparsesteer._layout import Column, InputNorm, OutputScale

if _native.extension is None:
    pytest.skip(_native.reason, allow_module_level=True)

pytestmark = pytest.mark.native

LEVELS = ("portable", "avx2", "avx512")
EDIT_ERROR = {torch.float32: 1e-5, torch.float64: 1e-12}
NARROW_EXCESS = 1e-2  # of the row's edit, beyond half an ulp of the output


@pytest.fixture(params=LEVELS, autouse=True)
def simd(request):
    before = _native.build_info()["simd"]
    try:
        _native.extension.set_simd_level(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield request.param
    _native.extension.set_simd_level(before)


def run(given):
    return _native.extension.steer(*given.values())


def check(given):
    out, want = run(given), expected(given)
    clear = ~near_a_jump(given)
    assert clear.float().mean() > 0.9 or len(clear) < 10
    out, want, into = out[clear], want[clear], given["into"][clear]
    if out.dtype in EDIT_ERROR:
        assert edit_error(out, want, into) < EDIT_ERROR[out.dtype]
    else:
        assert rounding_excess(out, want, into) < NARROW_EXCESS
    return out


RULES = [
    pytest.param(norm, scale, keep, id=f"{norm.name}-{scale.name}-{'keep' if keep else 'free'}")
    for norm in InputNorm
    for scale in OutputScale
    for keep in (False, True)
]


@pytest.mark.parametrize("input_norm, scale_rule, keep_norm", RULES)
def test_rules(input_norm, scale_rule, keep_norm):
    given = arguments(
        13, 21, 200, input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm, token_strength=True
    )
    if scale_rule == OutputScale.GAP_FILL:  # as the method uses it, d >= 0: a sum that cancels has no accurate inverse
        given["rows"][:, Column.C0 : Column.KNOT] = given["rows"][:, Column.C0 : Column.KNOT].abs()
        given["rows"][:, Column.FLOOR] = 0
    check(given)


SHAPES = [
    (1, 1, 64, None), (1, 5, 77, None), (1, 64, 576, None), (2, 8, 200, 136), (3, 17, 65, None), (7, 40, 200, None),
    (24, 16, 64, 200), (32, 33, 576, None), (65, 9, 129, None), (70, 70, 200, None), (131, 64, 96, 72),
]  # fmt: skip


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}xM{}xD{}xO{}".format(*s))
def test_shapes(shape, dtype):
    n, m, width, out_width = shape
    given = arguments(n, m, width, out_width, dtype=dtype, residual=n % 2 == 0, bias=m % 2 == 0, seed=n)
    if dtype == torch.float64:
        given = {
            k: v.double() if isinstance(v, torch.Tensor) and k not in ("x", "into", "residual") else v
            for k, v in given.items()
        }
    check(given)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_bf16_rows(dtype):
    check(arguments(9, 30, 200, dtype=dtype, row_dtype=torch.bfloat16))


@pytest.mark.parametrize("n, m", [(0, 5), (0, 0), (4, 0)])
def test_nothing_to_do(n, m):
    given = arguments(n, m, 64)
    assert torch.equal(run(given), given["into"])
    given = arguments(n, 0, 64, bias=True)
    torch.testing.assert_close(run(given), given["into"] + 0.75 * given["delta_bias"])


# the wide one is more than a chunk of columns and a band of rows (packed_dots.h, dense_sums.h)
@pytest.mark.parametrize("m, d", ((40, 200), (130, 450)))
@pytest.mark.parametrize("n", (1, 3, 70, 140))
def test_same_bits_in_any_batch_and_number_of_threads(n, m, d):
    given = arguments(n, m, d, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD)
    whole = run(given)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run(given), whole)
    finally:
        torch.set_num_threads(threads)
    for t in range(0, n, 17):
        alone = given | {"x": given["x"][t : t + 1], "into": given["into"][t : t + 1]}
        assert torch.equal(run(alone)[0], whole[t])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("n", (1, 5, 100))
@pytest.mark.parametrize("keep_norm", (False, True))
def test_untouched_tokens_keep_their_bits(n, dtype, keep_norm):
    given = arguments(100, 12, 77, dtype=dtype, keep_norm=keep_norm)
    given["rows"][:, Column.GATE] = 1  # only where active
    given["rows"][:, Column.FLOOR] = given["rows"][:, Column.BIAS] = 0
    given["rows"][:, Column.THRESHOLD] = 0.35
    given["encoder"] *= 0.15  # and seldom active
    given["into"][:, ::3] = -0.0
    kept = (expected(given) == given["into"].double()).all(-1)
    assert 20 < kept.sum() < 98
    chosen = torch.cat([kept.nonzero()[: n - n // 3, 0], (~kept).nonzero()[:, 0]])[:n]
    kept = kept[chosen]
    given["x"] = given["into"] = given["into"][chosen]
    out = run(given)
    as_bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(out.view(as_bits)[kept], given["into"].view(as_bits)[kept])


@pytest.mark.parametrize("n", (1, 9, 100))
@pytest.mark.parametrize("keep_norm", (False, True))
def test_in_place(n, keep_norm):
    given = arguments(n, 30, 200, keep_norm=keep_norm, token_strength=n > 1)
    want = run(given)
    for target in ("into", "x"):
        mine = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        if target == "x":
            mine["into"] = mine["x"]
        _native.extension.steer_out(*mine.values(), mine[target])
        assert torch.equal(mine[target], want)


def test_rows_of_a_larger_tensor():
    given = arguments(6, 10, 64, residual=True)
    want = run(given)
    wide = {name: torch.cat([given[name], given[name]], -1)[:, :64] for name in ("x", "into", "residual")}
    assert wide["x"].stride() == (128, 1)
    assert torch.equal(run(given | wide), want)
    columns = {name: given[name].T.contiguous().T for name in ("x", "into", "residual")}
    assert torch.equal(run(given | columns), want)


def test_infinite_and_nan_inputs_stay_in_their_token():
    given = arguments(8, 12, 64)
    given["x"] = given["into"] = given["x"].clone()
    given["x"][2, 5], given["x"][4, 7] = float("nan"), float("inf")
    clean = arguments(8, 12, 64)
    out, want = run(given), run(clean)
    others = [0, 1, 3, 5, 6, 7]
    assert torch.equal(out[others], want[others])
    assert out[2].isnan().any()


def test_unknown_level():
    with pytest.raises(RuntimeError, match="SIMD level sse9 is unknown; use avx512_bf16, avx512, avx2 or portable"):
        _native.extension.set_simd_level("sse9")
