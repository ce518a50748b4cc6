"""The compiled ``steer_reconstruct`` against the reference in fp64, every instruction set of this machine."""

import pytest
import torch
from instruction_sets import simd  # noqa: F401 - runs every test on each instruction set
from sae_cases import ACTIVATIONS, clear_tokens, expected, reconstruct_arguments
from steer_cases import edit_error, rounding_excess

from sparsesteer import _native
from sparsesteer._layout import Column, InputNorm

if _native.extension is None:
    pytest.skip(_native.reason, allow_module_level=True)

pytestmark = pytest.mark.native

EDIT_ERROR = {torch.float32: 1e-5, torch.float64: 1e-12}
NARROW_EXCESS = 1e-2  # of the row's edit, beyond half an ulp of the output


def run(given):
    return _native.extension.steer_reconstruct(*given.values())


def check(given, whole=False):
    out, want = run(given), expected("steer_reconstruct", given)
    clear = torch.ones(len(out), dtype=torch.bool) if whole else clear_tokens(given, "table")
    assert clear.float().mean() > 0.7 or len(clear) < 10
    out, want, into = out[clear], want[clear], given["into"][clear]
    if out.dtype in EDIT_ERROR:
        assert edit_error(out, want, into) < EDIT_ERROR[out.dtype]
    elif out.numel():
        assert rounding_excess(out, want, into) < NARROW_EXCESS


@pytest.mark.parametrize("keep_norm", (False, True))
@pytest.mark.parametrize("input_norm", InputNorm)
@pytest.mark.parametrize("k", (0, 6))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rules(activation, k, input_norm, keep_norm):
    check(
        reconstruct_arguments(
            13, 72, 60, 9, k, activation=activation, input_norm=input_norm, keep_norm=keep_norm, token_strength=True
        )
    )


SHAPES = [
    (0, 64, 30, 3, 0), (1, 577, 100, 7, 0), (2, 64, 30, 30, 4), (7, 77, 65, 0, 5), (33, 65, 200, 20, 0),
    (70, 72, 33, 5, 9),
]  # fmt: skip


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("n, d, f, m, k", SHAPES)
def test_shapes(n, d, f, m, k, dtype):
    check(reconstruct_arguments(n, d, f, m, k, dtype=dtype, residual=n % 2 == 1, seed=n))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_bf16_rows(dtype):
    check(reconstruct_arguments(9, 72, 60, 9, dtype=dtype, row_dtype=torch.bfloat16))


@pytest.mark.parametrize("k", (1, 5, 20, 39, 40, 100))
def test_ties_keep_the_lower_index(k):
    given = reconstruct_arguments(33, 24, 40, 40, k, whole=True, duplicates=True)
    check(given, whole=True)


def test_more_tokens_than_are_encoded_at_a_time():
    given = reconstruct_arguments(1100, 24, 40, 9, 6, whole=True, token_strength=True)
    check(given, whole=True)


@pytest.mark.parametrize("k", (0, 6))
def test_same_bits_in_any_batch_and_number_of_threads(k):
    given = reconstruct_arguments(70, 200, 300, 30, k, input_norm=InputNorm.LAYER_NORM, density=0.5)
    whole, threads = run(given), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run(given), whole)
    finally:
        torch.set_num_threads(threads)
    for rows in (slice(0, 1), slice(3, 6), slice(20, 60)):
        assert torch.equal(run(given | {"x": given["x"][rows], "into": given["into"][rows]}), whole[rows])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("keep_norm", (False, True))
def test_tokens_of_strength_0_keep_their_bits(dtype, keep_norm):
    given = reconstruct_arguments(14, 77, 60, 9, dtype=dtype, keep_norm=keep_norm, token_strength=True)
    given["into"][:, ::3] = -0.0
    kept = given["token_strength"] == 0
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(run(given).view(bits)[kept], given["into"].view(bits)[kept])
    assert torch.equal(run(given | {"strength": 0.0}).view(bits), given["into"].view(bits))


def test_nothing_active_leaves_the_bias():
    given = reconstruct_arguments(9, 72, 60, 9)
    given["table"][:, Column.THRESHOLD] = 1e6
    given["strength"] = 1.0
    torch.testing.assert_close(run(given), given["bias"].expand(9, -1))


def test_all_active():
    given = reconstruct_arguments(65, 72, 700, 70, activation="identity")
    check(given)


def test_an_inactive_edited_feature_adds_nothing_and_an_active_one_its_change():
    given = reconstruct_arguments(40, 24, 40, 40, 5, whole=True)
    untouched = given | {"features": given["features"][:0], "rows": given["rows"][:0]}
    constant = given | {"rows": torch.zeros_like(given["rows"])}
    constant["rows"][:, Column.C0] = 3.0  # d(f) - d(0) = 0
    assert torch.equal(run(constant), run(untouched))
    constant["rows"][:, Column.GATE] = 1  # d(0) = 0: three more for each active feature
    check(constant, whole=True)
    assert not torch.equal(run(constant), run(untouched))


def test_huge_tiny_and_nan_tokens_stay_among_themselves():
    given = reconstruct_arguments(12, 64, 60, 9)
    want = run(given)
    for token, value in ((1, 1e37), (4, 1e-42), (6, float("nan")), (11, float("inf"))):
        given["x"][token] = value
    out, others = run(given), [0, 2, 3, 5, 7, 8, 9, 10]
    assert torch.equal(out[others], want[others])
    assert torch.isfinite(out[4]).all()


def test_tensors_that_are_not_contiguous():
    given = reconstruct_arguments(9, 64, 60, 9, residual=True)
    want = run(given)
    turned = {
        name: given[name].T.contiguous().T
        for name in ("x", "into", "residual", "encoder", "decoder", "table", "rows")
    }  # fmt: skip
    assert torch.equal(run(given | turned), want)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([3, 60], "feature 60 is out of range, the SAE has 60"),
        ([-1, 3], "feature -1 is out of range"),
        ([5, 3], "features should rise, 3 comes after 5"),
        ([3, 3], "features should rise"),
    ],
)
def test_bad_features(features, message):
    given = reconstruct_arguments(9, 72, 60, 2)
    with pytest.raises(RuntimeError, match=f"steer_reconstruct: {message}"):
        run(given | {"features": torch.tensor(features)})


@pytest.mark.parametrize("name", ("into", "decoder", "table", "features", "rows", "bias"))
def test_wrong_shapes_and_dtypes(name):
    given = reconstruct_arguments(9, 72, 60, 9)
    with pytest.raises(RuntimeError, match=r"steer_reconstruct: \w+ should have shape"):
        run(given | {name: given[name][:-1]})
    with pytest.raises(RuntimeError, match=f"steer_reconstruct: {name} should be"):
        run(given | {name: given[name].to(torch.float16)})
