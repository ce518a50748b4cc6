"""The Triton kernels of ``activations`` and ``activations_topk``: those of steer, without its edit."""

import encode_forms
import pytest
import torch
from activation_cases import activation_arguments, showing
from sae_cases import expected, topk_arguments
from steer_cases import arguments
from test_steer_topk_triton import way, with_clear_ranks  # noqa: F401 - way: by counting, or by the k-th largest
from triton_device import DEVICE, HALVES, pytestmark  # noqa: F401

import sparsesteer as ss
from sparsesteer._layout import InputNorm
from sparsesteer.kernels import activations as row_kernels
from sparsesteer.kernels import encode as encode_kernels
from sparsesteer.kernels import steer as steer_kernels
from sparsesteer.kernels import steer_topk as topk_kernels
from sparsesteer.kernels.activations import activations
from sparsesteer.kernels.activations_topk import activations_topk
from sparsesteer.kernels.tiling import SteerTiling

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
FORMS = {
    "split": lambda n, m, width, out_width: SteerTiling(16, 16, 32, -(-width // 64), 64, 32, 64, 4),
    "whole": lambda n, m, width, out_width: SteerTiling(16, 16, 64, 1, width, 16, 64, 4),
    "split_one_token": lambda n, m, width, out_width: SteerTiling(1, 16, 32, -(-width // 64), 64, 32, 64, 4),
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    for module in (row_kernels, steer_kernels):
        monkeypatch.setattr(module, "steer_tiling", FORMS[request.param])
    return request.param


def check(steering, clear=slice(None)):
    """Against the reference in fp64, and against what ``steer`` writes with the same cut."""
    given = activation_arguments(steering)
    f = activations(*given.values())
    assert f.dtype == torch.float32
    want = expected("activations", given)
    torch.testing.assert_close(f[clear].double(), want[clear], **TOLERANCE)
    seen = steer_kernels.steer(*showing(steering).values())
    torch.testing.assert_close(f.to(seen.dtype), seen, rtol=0, atol=0)


@pytest.mark.parametrize("n, m, width", [(1, 1, 64), (1, 40, 200), (3, 5, 77), (17, 40, 77), (1, 5, 1)], ids=str)
def test_every_form_and_shape(form, n, m, width):
    n = min(n, 3) if "one_token" in form else n  # a program for every token is slow here
    check(arguments(n, m, width, device=DEVICE, residual=n == 3))


@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
def test_norms(form, input_norm):
    check(arguments(3, 20, 77, device=DEVICE, input_norm=input_norm, residual=True))


@pytest.mark.parametrize("n", [1, 3, 17, 66])
def test_the_tiling_of_the_shape(n):
    check(arguments(n, 40, 77, device=DEVICE, input_norm=InputNorm.LAYER_NORM))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_narrow_types(form, dtype):
    check(arguments(3, 20, 77, device=DEVICE, dtype=dtype))


def check_topk(steering, clear=slice(None)):
    given = activation_arguments(steering)
    f = activations_topk(*given.values())
    torch.testing.assert_close(f[clear].double(), expected("activations_topk", given)[clear], **TOLERANCE)
    seen = topk_kernels.steer_topk(*showing(steering).values())
    torch.testing.assert_close(f.to(seen.dtype), seen, rtol=0, atol=0)
    return f


@pytest.mark.parametrize("shape", [(1, 77, 90, 8, 20), (3, 40, 90, 12, 7), (17, 16, 40, 3, 40)], ids=str)
@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
def test_topk(way, shape, input_norm):  # noqa: F811
    steering = topk_arguments(*shape, device=DEVICE, residual=True, density=0.5, input_norm=input_norm)
    check_topk(steering, with_clear_ranks(steering))


@pytest.mark.parametrize("k", [1, 11, 39, 40])
def test_topk_ties(way, k):  # noqa: F811
    steering = topk_arguments(2, 33, 40, 40, k, device=DEVICE, whole=True, duplicates=True, features=torch.arange(40))
    assert ((check_topk(steering) != 0).sum(1) <= k).all()


@pytest.mark.parametrize("form", encode_forms.FORMS)
def test_topk_in_every_form_of_the_stream(form, monkeypatch):
    for module in (topk_kernels, encode_kernels):
        encode_forms.force(monkeypatch, module, form)
    check_topk(topk_arguments(2, 33, 90, 8, 10, device=DEVICE, whole=True, duplicates=True))


def test_a_whole_sae_without_topk():
    given = activation_arguments(topk_arguments(3, 33, 90, 8, 10, device=DEVICE)) | {"k": 0}
    given["rows"][:, 4] = -torch.inf  # identity rows, active below zero
    given["rows"][:, 1] = -torch.inf
    f = activations_topk(*given.values())
    assert (f < 0).any()
    torch.testing.assert_close(f.double(), expected("activations_topk", given), **TOLERANCE)


@pytest.mark.parametrize("n, m", [(0, 5), (4, 0), (0, 0)])
def test_nothing_to_do(n, m):
    assert activations(*activation_arguments(arguments(n, m, 64, device=DEVICE)).values()).shape == (n, m)
    topk = topk_arguments(n, 33, 60, m, 8, device=DEVICE)
    assert activations_topk(*activation_arguments(topk).values()).shape == (n, m)


def test_strided_tensors(form):
    given = activation_arguments(arguments(3, 20, 64, device=DEVICE, residual=True))
    want = activations(*given.values())
    columns = {name: given[name].T.contiguous().T for name in ("x", "residual", "encoder", "rows")}
    assert torch.equal(activations(*(given | columns).values()), want)


def test_same_input_same_bits_and_a_broken_token_stays_alone(form):
    given = activation_arguments(arguments(3, 20, 77, device=DEVICE, input_norm=InputNorm.LAYER_NORM))
    want = activations(*given.values())
    assert torch.equal(activations(*given.values()), want)
    given["x"] = given["x"].clone()
    given["x"][1] = torch.nan
    assert torch.equal(activations(*given.values())[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("case", ["rows", "topk"])
def test_the_op_is_registered_as_torch_wants_it(case):
    steering = (
        arguments(3, 5, 64, device=DEVICE, residual=True)
        if case == "rows"
        else topk_arguments(2, 16, 40, 3, 5, device=DEVICE)
    )
    given = activation_arguments(steering)
    op, kernel = {"rows": ("activations", activations), "topk": ("activations_topk", activations_topk)}[case]
    torch.library.opcheck(getattr(torch.ops.sparsesteer, op).default, tuple(given.values()))
    assert torch.equal(getattr(torch.ops.sparsesteer, op)(*given.values()), kernel(*given.values()))


@pytest.mark.parametrize("activation", [ss.ReLU(), ss.TopK(8)], ids=["relu", "topk"])
def test_public_op_takes_these_kernels(activation):
    W_enc = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)) / 8
    sae = ss.SAE(W_enc=W_enc, W_dec=W_enc.T.contiguous(), activation=activation).to(DEVICE)
    plan = sae.plan(ss.Edit.ablate(range(0, 300, 5)))
    h = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    f = ss.ops.activations(h, plan)
    assert (f != 0).any()
    torch.testing.assert_close(f, ss.ops.activations(h, plan, backend="reference"), **TOLERANCE)
