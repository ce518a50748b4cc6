"""The Triton kernels of ``steer_reconstruct`` against the reference in fp64."""

import pytest
import torch
from sae_cases import clear_tokens, expected, in_fp64, reconstruct_arguments
from steer_cases import edit_error, rounding_excess
from triton_device import DEVICE, HALVES, pytestmark  # noqa: F401

import sparsesteer as ss
from sparsesteer import reference
from sparsesteer._layout import Column, InputNorm
from sparsesteer.kernels import steer_reconstruct as kernels
from sparsesteer.kernels.tiling_decode import DenseTiling

EDIT_ERROR = 1e-5
FEATURES = 50


@pytest.fixture
def little_room(monkeypatch):
    """Most tokens have more codes than there is room; programs share the features, two blocks each."""
    monkeypatch.setattr(kernels, "ROOM", 8)
    monkeypatch.setattr(kernels, "dense_tiling", lambda n, f: DenseTiling(16, 16, 32, 64, 32))


@pytest.fixture(params=("codes", "dense"))
def form(request):
    if request.param == "dense":
        request.getfixturevalue("little_room")


def arguments(n, width, k=0, m=20, f=FEATURES, **options):
    return reconstruct_arguments(n, width, f, m, k, device=DEVICE, **options)


def check(given, tokens=None):
    """Against fp64; ``tokens``: those that rounding cannot turn, almost all if not given."""
    out = kernels.steer_reconstruct(*given.values())
    if tokens is None:
        tokens = clear_tokens(given, "table")
        assert tokens.sum() >= 0.9 * len(tokens)
    want = expected("steer_reconstruct", given)
    assert out.dtype == given["into"].dtype
    assert edit_error(out[tokens], want[tokens], given["into"][tokens]) <= EDIT_ERROR


def active(given):
    """Active features [N] of every token."""
    wide = in_fp64(given)
    x = reference.read_input(wide["x"], wide["residual"])
    codes = reference.dense_codes(x, wide["encoder"], wide["table"], given["k"], given["input_norm"])
    return (codes != 0).sum(-1)


@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
def test_every_norm(form, input_norm):
    keep_norm = input_norm != InputNorm.CONSTANT_NORM
    check(arguments(3, 40, input_norm=input_norm, keep_norm=keep_norm, residual=True, token_strength=True))


@pytest.mark.parametrize("span", [32, 96])
def test_programs_may_take_any_number_of_features(monkeypatch, little_room, span):
    monkeypatch.setattr(kernels, "dense_tiling", lambda n, f: DenseTiling(16, 32, 32, 64, span))
    check(arguments(3, 77))


def test_the_tiling_of_the_shape(monkeypatch):
    monkeypatch.setattr(kernels, "ROOM", 8)
    check(arguments(3, 40))


@pytest.mark.parametrize("activation", ["gated", "identity", "mixed"])
def test_every_activation(form, activation):
    check(arguments(3, 40, activation=activation))


@pytest.mark.parametrize("k", [1, 7, FEATURES, FEATURES + 5])
@pytest.mark.parametrize("whole", [False, True], ids=["", "ties"])
def test_topk(little_room, k, whole):
    given = arguments(3, 24, k, whole=whole)
    check(given, slice(None) if whole else None)


@pytest.mark.parametrize(("n", "width"), [(0, 40), (1, 77), (17, 24), (3, 1)])
def test_shapes(form, n, width):
    check(arguments(n, width, f=30, density=0.3))


@pytest.mark.parametrize("m", [0, 1, FEATURES])
def test_no_feature_one_and_all_are_edited(form, m):
    check(arguments(3, 40, m=m))


def test_tokens_with_few_and_many_active_features_together(little_room):
    given = arguments(6, 40, density=0.12)
    given["x"][2] = 0
    counts = active(given)
    assert counts.min() == 0 and counts.max() > 8 and ((counts > 0) & (counts <= 8)).any()
    check(given)


def test_exactly_as_many_codes_as_there_is_room(monkeypatch):
    given = arguments(3, 40)
    monkeypatch.setattr(kernels, "ROOM", int(active(given)[1]))
    check(given)


def test_nothing_active(little_room):
    given = arguments(3, 40, activation="jumprelu")
    given["table"][:, Column.THRESHOLD] = torch.inf
    check(given)


def test_equal_features_edited_apart(little_room):
    given = arguments(3, 40, duplicates=True)
    check(given)


def test_another_width_is_written(form):
    given = arguments(3, 40)
    generator = torch.Generator().manual_seed(5)
    given["into"] = torch.randn(3, 77, generator=generator).to(DEVICE)
    given["decoder"] = torch.randn(FEATURES, 77, generator=generator).to(DEVICE)
    given["bias"] = torch.randn(77, generator=generator).to(DEVICE)
    check(given)


def test_without_edits_it_is_the_sae(form):
    given = arguments(3, 40, m=0) | {"strength": 1.0}
    wide = in_fp64(given)
    want = reference.dense_codes(wide["x"], wide["encoder"], wide["table"], 0, 0) @ wide["decoder"] + wide["bias"]
    torch.testing.assert_close(kernels.steer_reconstruct(*given.values()).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e-37, 1e15], ids=["tiny", "huge"])
def test_extreme_inputs(form, size):
    given = arguments(3, 40, activation="identity")
    for name in ("x", "into"):
        given[name] *= size
    for name in ("table", "rows"):
        given[name][:, [Column.BIAS, Column.SHIFT, Column.C0, Column.KNOT]] *= size
    given["bias"] *= size
    check(given, slice(None))


@pytest.mark.parametrize("keep_norm", [False, True], ids=["", "keep_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_strength_zero_keeps_the_bits(little_room, dtype, keep_norm):
    given = arguments(3, 40, dtype=dtype, keep_norm=keep_norm)
    given["into"][:, ::5] = -0.0
    given["into"][:, 1] = torch.finfo(dtype).smallest_normal / 4
    given["token_strength"] = torch.tensor([0.0, 1.0, 0.0], device=DEVICE)
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    out, into = kernels.steer_reconstruct(*given.values()).view(integers), given["into"].view(integers)
    assert torch.equal(out[[0, 2]], into[[0, 2]]) and not torch.equal(out[1], into[1])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_lose_only_the_rounding_of_the_result(form, dtype):
    given = arguments(3, 40, dtype=dtype, input_norm=InputNorm.LAYER_NORM, residual=True)
    out = kernels.steer_reconstruct(*given.values())
    assert out.dtype == dtype
    tokens = clear_tokens(given, "table")
    assert tokens.any()
    want = expected("steer_reconstruct", given)
    assert rounding_excess(out[tokens], want[tokens], given["into"][tokens]) <= EDIT_ERROR


def test_a_broken_token_stays_alone(form):
    given = arguments(3, 40)
    want = kernels.steer_reconstruct(*given.values())
    given["x"][1] = torch.nan
    out = kernels.steer_reconstruct(*given.values())
    assert torch.equal(out[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("k", [0, 7])
def test_same_input_same_bits(little_room, k):
    given = arguments(3, 40, k, input_norm=InputNorm.LAYER_NORM, keep_norm=True)
    first, second = (kernels.steer_reconstruct(*given.values()) for _ in range(2))
    assert torch.equal(first, second)


def test_the_op_is_registered_as_torch_wants_it():
    given = arguments(2, 16, f=20, m=3, residual=True, token_strength=True)
    torch.library.opcheck(torch.ops.sparsesteer.steer_reconstruct.default, tuple(given.values()))


@pytest.mark.parametrize("activation", [ss.ReLU(), ss.TopK(5)], ids=str)
def test_public_op_takes_these_kernels(monkeypatch, activation):
    calls = []
    launched = kernels.steer_reconstruct
    monkeypatch.setattr(kernels, "steer_reconstruct", lambda *given: calls.append(1) or launched(*given))
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(64, 40, generator=generator) / 8
    sae = ss.SAE(
        W_enc=W_enc, W_dec=W_enc.T.contiguous(), b_enc=torch.zeros(40), b_dec=torch.zeros(64), activation=activation
    ).to(DEVICE)
    plan = sae.plan(ss.Edit.set({3: 8.0}) | ss.Edit.scale({17: 0.0}), reconstruct=True)
    h = torch.randn(2, 2, 64, generator=generator).to(DEVICE)
    with torch.inference_mode():
        steered = ss.ops.steer(h, plan)
    assert calls
    torch.testing.assert_close(steered, ss.ops.steer(h, plan, backend="reference"), rtol=1e-5, atol=1e-5)
