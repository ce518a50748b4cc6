"""The compiled ``steer_topk`` against the reference in fp64, every instruction set that this machine has."""

import math

import pytest
import torch
from instruction_sets import simd  # noqa: F401 - runs every test on each instruction set
from sae_cases import expected, in_fp64, topk_arguments
from steer_cases import edit_error, rounding_excess

from sparsesteer import _native, reference
from sparsesteer._layout import Column, InputNorm, OutputScale

if _native.extension is None:
    pytest.skip(_native.reason, allow_module_level=True)

pytestmark = pytest.mark.native

EDIT_ERROR = {torch.float32: 1e-5, torch.float64: 1e-12}
NARROW_EXCESS = 1e-2  # of the row's edit, beyond half an ulp of the output


def run(given):
    return _native.extension.steer_topk(*given.values())


def pre_activations(given):
    """z [N, F] in fp64."""
    wide = in_fp64(given)
    x = reference.read_input(wide["x"], wide["residual"])
    return (x @ wide["encoder"].T) * reference.input_scale(x, given["input_norm"]) + wide["encoder_bias"]


def with_clear_ranks(given, margin=1e-5):
    """Tokens [N] none of whose features lies so close to an edited one, or to 0, that rounding may decide its rank."""
    z = pre_activations(given)
    own = z[:, given["features"]]
    near = ((z[:, None, :] - own[:, :, None]).abs() < margin).sum(-1) > 1
    clear = ~(near | (own.abs() < margin)).any(-1)
    assert clear.float().mean() > 0.6 or not len(clear)
    return clear


def check(given, clear=slice(None)):
    out, want, into = run(given)[clear], expected("steer_topk", given)[clear], given["into"][clear]
    assert out.dtype == into.dtype
    if out.dtype in EDIT_ERROR:
        assert edit_error(out, want, into) <= EDIT_ERROR[out.dtype]
    elif len(out):
        assert rounding_excess(out, want, into) <= NARROW_EXCESS


SHAPES = [
    (0, 40, 60, 5, 4), (1, 576, 80, 8, 9), (1, 2304, 70, 64, 20), (7, 65, 150, 1, 1), (33, 40, 200, 70, 30),
    (101, 24, 90, 12, 7),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}xD{}xF{}xM{}xK{}".format(*s))
@pytest.mark.parametrize("whole", [False, True])
def test_shapes(shape, whole):
    n = shape[0]
    given = topk_arguments(*shape, whole=whole, residual=n % 2 == 1, bias=n == 33, duplicates=whole)
    check(given, slice(None) if whole else with_clear_ranks(given))


@pytest.mark.parametrize("n", [1, 5, 100])
def test_ranks_around_k(n):
    """The features at ranks k - 2 to k + 1 of the first token, so that of two neighbours one is in and one is out."""
    given = topk_arguments(n, 40, 300, 4, 50)
    falling = pre_activations(given)[0].argsort(descending=True)
    features = falling[48:52].sort().values
    given = topk_arguments(n, 40, 300, 4, 50, features=features)
    given["rows"][:, Column.C0 :] = torch.tensor([2.0, 0.5, 0.0, 0.0, 1.0])  # only where active
    given["decoder"] = torch.eye(4, 40)
    check(given, with_clear_ranks(given))
    changed = (run(given) != given["into"])[0, :4]
    assert torch.equal(changed, torch.isin(features, falling[:50]))


@pytest.mark.parametrize("k", [1, 2, 19, 20, 21, 39, 40])
def test_ties_at_the_border(k):
    """Pairs of equal features: of the pair at the border the lower index is in, the higher is out."""
    given = topk_arguments(6, 33, 40, 40, k, whole=True, duplicates=True, features=torch.arange(40))
    given["rows"][:, Column.C0 :] = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    check(given)
    given["x"].zero_()
    given["encoder_bias"] = torch.ones(40)  # all tie
    given["decoder"] = torch.eye(40, 33)
    check(given)


def test_duplicates_tie_exactly_without_whole_numbers():
    """Equal encoder rows far apart, k at every place: their z must have the same bits, or an edit would appear twice
    or not at all."""
    given = topk_arguments(9, 97, 200, 200, 1, duplicates=True, features=torch.arange(200))
    given["rows"][:, Column.C0 :] = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    given["decoder"] = torch.ones(200, 97)
    positive = (pre_activations(given) > 1e-4).sum(-1)
    for k in range(1, int(positive.min())):
        change = run(given | {"k": k}).double() - given["into"].double()
        torch.testing.assert_close(change / given["strength"], torch.full_like(change, k), rtol=0, atol=1e-4)


@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
@pytest.mark.parametrize("scale_rule", OutputScale, ids=lambda rule: rule.name)
@pytest.mark.parametrize("keep_norm", [False, True])
def test_rules(input_norm, scale_rule, keep_norm):
    given = topk_arguments(
        13, 60, 150, 9, 40, input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm, token_strength=True
    )
    check(given, with_clear_ranks(given))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("row_dtype", (torch.float32, torch.bfloat16), ids=str)
def test_dtypes(dtype, row_dtype):
    if dtype == torch.float64:
        row_dtype = torch.float32  # "the compute dtype" in these cases
    given = topk_arguments(9, 48, 120, 10, 20, dtype=dtype, row_dtype=row_dtype, residual=True)
    check(given, with_clear_ranks(given))


@pytest.mark.parametrize("k", [60, 61, 1000])
def test_k_of_all_features(k):
    check(topk_arguments(5, 33, 60, 12, k, whole=True))


def test_tokens_without_an_active_feature():
    """An ungated edit of an inactive feature is d(0); a gated one leaves the bits alone."""
    given = topk_arguments(20, 33, 60, 6, 8, whole=True)
    given["encoder_bias"] = torch.full((60,), -1e4)
    given["rows"][:, Column.GATE] = 0
    check(given)
    assert not torch.equal(run(given), given["into"])
    given["rows"][:, Column.GATE] = 1
    assert torch.equal(run(given), given["into"])


def test_all_active():
    given = topk_arguments(4, 33, 60, 60, 30, whole=True)
    given["encoder_bias"] = torch.full((60,), 1000.0)
    check(given)


def test_nothing_to_edit():
    given = topk_arguments(4, 33, 60, 0, 8)
    assert torch.equal(run(given), given["into"])
    check(topk_arguments(4, 33, 60, 0, 8, bias=True))


def test_strength_0_keeps_the_bits():
    given = topk_arguments(7, 33, 60, 5, 8, token_strength=True, bias=True)
    kept = given["token_strength"] == 0
    given["into"][:, ::3] = -0.0
    out = run(given)
    assert kept.any()
    assert torch.equal(out[kept].view(torch.int32), given["into"][kept].view(torch.int32))


@pytest.mark.parametrize("n", [1, 7, 130])
def test_same_bits_in_any_batch_and_number_of_threads(n):
    given = topk_arguments(n, 77, 150, 12, 20, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD)
    whole = run(given)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run(given), whole)
    finally:
        torch.set_num_threads(threads)
    for t in range(0, n, 11):
        alone = given | {"x": given["x"][t : t + 1], "into": given["into"][t : t + 1]}
        assert torch.equal(run(alone)[0], whole[t])


def test_agrees_with_encode_on_what_is_active():
    given = topk_arguments(40, 77, 300, 300, 25, features=torch.arange(300))
    given["rows"][:, Column.C0 :] = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    given["decoder"], given["into"] = torch.eye(300), torch.zeros(40, 300)
    rows = given["rows"].clone()
    rows[:, Column.BIAS] = given["encoder_bias"]
    indices = _native.extension.encode(given["x"], given["encoder"], rows, 25, 25, given["input_norm"])[1]
    active = torch.zeros(40, 301, dtype=torch.bool).scatter(1, indices.long() % 301, True)[:, :300]  # -1 falls off
    assert torch.equal(run(given) != 0, active)


def test_many_edits_of_many_tokens_in_bands():
    """More activations than are held at once, 2^21; half of the tokens fit."""
    given = topk_arguments(2000, 8, 1200, 1100, 30, whole=True)
    halves = [
        run(given | {name: given[name][tokens] for name in ("x", "into")})
        for tokens in (slice(0, 1000), slice(1000, 2000))
    ]
    assert torch.equal(run(given), torch.cat(halves))


def test_a_broken_token_stays_alone():
    given = topk_arguments(8, 33, 60, 12, 9)
    clean = run(given)
    given["x"][2, 5], given["x"][4, 7] = math.nan, math.inf
    others = [0, 1, 3, 5, 6, 7]
    assert torch.equal(run(given)[others], clean[others])


@pytest.mark.parametrize("factor", [2.0**60, 2.0**-145])
def test_huge_and_denormal_values(factor):
    given = topk_arguments(3, 16, 60, 12, 9, whole=True)
    given["x"] *= factor
    given["encoder_bias"] = torch.zeros(60)
    check(given)


def test_errors():
    given = topk_arguments(2, 8, 10, 3, 4)
    with pytest.raises(RuntimeError, match="steer_topk: feature 10 is out of range, there are 10"):
        run(given | {"features": torch.tensor([0, 1, 10])})
    with pytest.raises(RuntimeError, match="steer_topk: encoder_bias should have shape \\[10\\], got \\[9\\]"):
        run(given | {"encoder_bias": given["encoder_bias"][:9]})
    with pytest.raises(RuntimeError, match="steer_topk: k should be positive, got 0"):
        run(given | {"k": 0})
