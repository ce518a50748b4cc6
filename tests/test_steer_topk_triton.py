"""The Triton kernels of ``steer_topk`` against the reference in fp64."""

import encode_forms
import pytest
import torch
from sae_cases import expected, in_fp64, topk_arguments
from steer_cases import edit_error, rounding_excess
from triton_device import DEVICE, HALVES, INTERPRETED, pytestmark  # noqa: F401

import sparsesteer as ss
from sparsesteer import reference
from sparsesteer._layout import Column, InputNorm, OutputScale
from sparsesteer.kernels import encode as encode_kernels
from sparsesteer.kernels import steer_topk as topk_kernels
from sparsesteer.kernels.steer_topk import steer_topk

EDIT_ERROR = 1e-5


@pytest.fixture(params=["counted", "selected"])
def way(request, monkeypatch):
    """Ranks by counting, or by the k-th largest."""
    monkeypatch.setattr(topk_kernels, "most_counted", lambda n: 10**6 if request.param == "counted" else 0)
    return request.param


@pytest.fixture(params=encode_forms.FORMS)
def form(request, monkeypatch):
    for module in (topk_kernels, encode_kernels):
        encode_forms.force(monkeypatch, module, request.param)
    return request.param


def arguments(*sizes, **options):
    return topk_arguments(*sizes, device=DEVICE, **options)


def pre_activations(given):
    """z [N, F] in fp64."""
    wide = in_fp64(given)
    x = reference.read_input(wide["x"], wide["residual"])
    return (x @ wide["encoder"].T) * reference.input_scale(x, given["input_norm"]) + wide["encoder_bias"]


def check(given, clear=slice(None)):
    out = steer_topk(*given.values())
    assert out.dtype == given["into"].dtype
    assert edit_error(out[clear], expected("steer_topk", given)[clear], given["into"][clear]) <= EDIT_ERROR


def with_clear_ranks(given, margin=1e-5):
    """Tokens [N] none of whose features lies so close to an edited one, or to 0, that rounding may decide its rank."""
    z = pre_activations(given)
    own = z[:, given["features"]]
    near = ((z[:, None, :] - own[:, :, None]).abs() < margin).sum(-1) > 1
    clear = ~(near | (own.abs() < margin)).any(-1)
    assert clear.float().mean() > 0.6
    return clear


def test_ties(form, way):
    """Whole numbers with every row twice: ranks are exact, and most edited features are tied with another."""
    given = arguments(2, 33, 150, 20, 20, whole=True, duplicates=True)
    ranks = reference.rank_within(pre_activations(given), given["features"])
    assert (ranks < 20).any() and (ranks >= 20).any()
    check(given)


@pytest.mark.parametrize("k", [1, 11, 149, 150])
def test_features_of_ranks_around_k(way, k):
    given = arguments(1, 33, 150, 1, k, whole=True, duplicates=True)
    given["into"] = given["x"] * 2
    order = pre_activations(given)[0].sort(descending=True, stable=True).indices
    edited = order[max(0, k - 2) : k + 2].sort().values  # from rank k - 2 to k + 1, counted from 0
    full = arguments(1, 33, 150, len(edited), k, whole=True, duplicates=True, features=edited.cpu())
    check(full | {"into": given["into"]})


RULES = [
    (InputNorm.NONE, OutputScale.ONE, True),
    (InputNorm.LAYER_NORM, OutputScale.STD, False),
    (InputNorm.CONSTANT_NORM, OutputScale.RMS, False),
    (InputNorm.NONE, OutputScale.NORM, False),
    (InputNorm.NONE, OutputScale.GAP_FILL, True),
    (InputNorm.CONSTANT_NORM, OutputScale.GAP_FILL, False),
]


@pytest.mark.parametrize(("norm", "scale", "keep"), RULES)
def test_every_rule(norm, scale, keep):
    rules = {"input_norm": norm, "scale_rule": scale, "keep_norm": keep}
    given = arguments(3, 77, 90, 12, 20, token_strength=True, density=0.5, **rules)
    check(given, with_clear_ranks(given))


def test_residual_and_bias(way):
    given = arguments(4, 40, 90, 12, 20, residual=True, bias=True, input_norm=InputNorm.LAYER_NORM, density=0.5)
    check(given, with_clear_ranks(given))


@pytest.mark.parametrize(
    ("n", "m", "d", "f"), [(0, 1, 77, 40), (1, 9, 77, 40), (7, 1, 16, 33), (7, 9, 77, 40), (33, 9, 16, 33)]
)
def test_the_tiling_of_the_shape(n, m, d, f):
    check(arguments(n, d, f, m, 5, whole=True))


def test_more_edited_features_than_a_block(way):
    check(arguments(1, 20, 90, 70, 30, whole=True))


def test_a_token_of_zeros(way):
    given = arguments(2, 16, 40, 40, 7, whole=True, features=torch.arange(40))
    given["x"][0] = 0
    given["encoder_bias"] = torch.ones_like(given["encoder_bias"])
    check(given)


def test_nothing_active_keeps_the_bits(way):
    given = arguments(3, 33, 90, 8, 10, whole=True)
    given["encoder_bias"] = torch.full_like(given["encoder_bias"], -1e6)
    given["rows"][:, Column.GATE] = 1
    given["into"][:, ::3] = -0.0
    assert torch.equal(steer_topk(*given.values()).view(torch.int32), given["into"].view(torch.int32))


def test_a_token_without_a_positive_edited_feature_needs_no_encoder(monkeypatch):
    """The stream would meet NaN, which no comparison shows; the launcher's programs leave before they read."""
    given = arguments(2, 33, 90, 4, 10, whole=True)
    given["encoder_bias"] = given["encoder_bias"].clone()
    given["encoder_bias"][given["features"]] = -1e6
    want = expected("steer_topk", given)
    launch, counts = topk_kernels._ranks, []
    monkeypatch.setattr(topk_kernels, "_ranks", lambda *a: counts.append(launch(*a)) or counts[0])
    others = torch.ones(90, dtype=torch.bool)
    others[given["features"].cpu()] = False
    given["encoder"][others.to(DEVICE)] = torch.inf
    out = steer_topk(*given.values())
    assert not counts[0].any()
    assert edit_error(out, want, given["into"]) <= EDIT_ERROR


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("row_dtype", [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16], ids=str)
def test_narrow_types(way, dtype, row_dtype):
    given = arguments(3, 40, 90, 12, 20, whole=True, duplicates=True, dtype=dtype, row_dtype=row_dtype)
    out = steer_topk(*given.values())
    assert out.dtype == dtype
    assert rounding_excess(out, expected("steer_topk", given), given["into"]) <= 1e-4


def test_strides_and_one_tensor_read_and_written(way):
    given = arguments(3, 33, 90, 8, 10, whole=True)
    given["into"] = given["x"]
    want = steer_topk(*given.values())
    wide = torch.full((3, 50), torch.nan, device=DEVICE)
    wide[:, 7:40] = given["x"]
    columns = {"x": wide[:, 7:40], "into": wide[:, 7:40], "encoder": given["encoder"].T.contiguous().T}
    columns["features"] = given["features"].repeat_interleave(2)[::2]
    assert torch.equal(steer_topk(*(given | columns).values()), want)


def test_no_edited_features():
    given = arguments(3, 33, 90, 0, 10, bias=True)
    check(given)
    check(given | {"delta_bias": None})


def test_a_broken_token_stays_alone(way):
    given = arguments(4, 40, 90, 8, 10, bias=True)
    want = steer_topk(*given.values())
    given["x"][1], given["x"][2, 5] = torch.nan, torch.inf
    assert torch.equal(steer_topk(*given.values())[[0, 3]], want[[0, 3]])


def test_same_input_same_bits(way):
    given = arguments(3, 40, 90, 8, 10, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD)
    assert torch.equal(steer_topk(*given.values()), steer_topk(*given.values()))


def test_the_op_is_registered_as_torch_wants_it():
    given = arguments(2, 16, 40, 3, 5, bias=True)
    torch.library.opcheck(torch.ops.sparsesteer.steer_topk.default, tuple(given.values()))
    assert torch.equal(torch.ops.sparsesteer.steer_topk(*given.values()), steer_topk(*given.values()))


def topk_plan():
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(64, 300, generator=generator) / 8
    sae = ss.SAE(
        W_enc=W_enc, W_dec=W_enc.T.contiguous(), b_enc=torch.zeros(300), b_dec=torch.zeros(64), activation=ss.TopK(8)
    )
    return sae.to(DEVICE).plan(ss.Edit.set({i: 8.0 for i in range(0, 300, 30)}))


def test_public_op_takes_these_kernels():
    plan = topk_plan()
    h = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with torch.inference_mode():
        steered = ss.ops.steer(h, plan)
    assert not torch.equal(steered, h)
    torch.testing.assert_close(steered, ss.ops.steer(h, plan, backend="reference"), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("n", [1, 40])
def test_a_graph_replays_on_changed_inputs(way, n):
    given = arguments(n, 576, 4608, 16, 64)
    steer_topk(*given.values())  # compiles outside the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = steer_topk(*given.values())
    for _ in range(2):
        given["x"].normal_()
        graph.replay()
        assert torch.equal(out, steer_topk(*given.values()))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter's products are NumPy's, whose order depends on the shape")
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1, 8, 33, 100, 1000])
def test_equal_rows_tie_to_the_bit(way, n, rows):
    """Random numbers, every row of the encoder twice, all of them edited, an odd k: one pair is cut in two."""
    half, k = 2304, 63
    features = torch.arange(2 * half)
    given = arguments(
        n, 576, 2 * half, 2 * half, k, features=features, duplicates=True, dtype=torch.bfloat16, row_dtype=rows
    )
    given["rows"][:, Column.C0 :] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0], device=DEVICE)  # d = f
    given["decoder"] = torch.eye(2 * half, device=DEVICE, dtype=rows)
    given["into"] = torch.zeros(n, 2 * half, device=DEVICE, dtype=torch.bfloat16)
    active = steer_topk(*given.values()) != 0
    assert (active.sum(1) == k).all()
    assert ((active[:, :half] & ~active[:, half:]).sum(1) == 1).all()
    assert not (active[:, half:] & ~active[:, :half]).any()
