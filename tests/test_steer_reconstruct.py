"""Reconstruct plans through ops.steer: the tensor becomes the SAE's edited reconstruction."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sae import F, every_activation, hidden, make_sae

import sparsesteer as ss
from sparsesteer import Edit, ops

EDIT = (
    Edit.set({3: 2.0, 50: 1.0, 197: 0.5})
    | Edit.scale({7: 0.0})
    | Edit.add({9: 1.5})
    | Edit.add({11: 1.0}, when_active=True)
    | Edit.floor({60: 0.75})
    | Edit.cap({61: 0.25})
)


def edited_codes(sae, h):
    f = sae.encode(h)
    active = f[:, 11] > 0
    f[:, 3], f[:, 50], f[:, 197], f[:, 7] = 2.0, 1.0, 0.5, 0.0
    f[:, 9] += 1.5
    f[:, 11] += active.to(f)
    f[:, 60] = f[:, 60].clamp(min=0.75)
    f[:, 61] = f[:, 61].clamp(max=0.25)
    return f


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", every_activation())
def test_edited_reconstruction(kind, normalize):
    sae, h = make_sae(every_activation()[kind], normalize=normalize), hidden(9)
    out = ops.steer(h, sae.plan(EDIT, reconstruct=True))
    want = sae.decode(edited_codes(sae, h.double()), like=h.double())
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 7, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_and_sizes(dtype, n):
    sae, h = make_sae(), hidden(n, dtype)
    out = ops.steer(h, sae.plan(EDIT, reconstruct=True))
    assert out.dtype == dtype and out.shape == h.shape
    # tables made of fp32 weights hold fp32 numbers, whatever h is
    eps = {torch.float32: 1e-5, torch.float64: 1e-7}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(out.double(), sae.decode(edited_codes(sae, h.double())), rtol=eps, atol=eps)


@pytest.mark.parametrize("preserve_norm", [False, True])
def test_strength_into_and_residual(preserve_norm):
    sae, h, w, residual = make_sae(ss.TopK(20)), hidden(5), hidden(5, seed=2), hidden(5, seed=3)
    strength = torch.tensor([0.0, 1.0, -0.5, 0.25, 0.0])
    plan = sae.plan(EDIT, reconstruct=True, preserve_norm=preserve_norm)
    out = ops.steer(h, plan, strength, into=w, residual=residual)
    target = sae.decode(edited_codes(sae, h.double() + residual.double()))
    want = w.double() + strength.double()[:, None] * (target - w.double())
    if preserve_norm:
        want = want * w.double().norm(dim=-1, keepdim=True) / want.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(out[0], w[0]) and torch.equal(out[4], w[4])


def test_no_edit_gives_the_plain_reconstruction():
    sae, h = make_sae(), hidden(6)
    out = ops.steer(h, sae.plan(Edit(), reconstruct=True))
    torch.testing.assert_close(out, sae.decode(sae.encode(h)), rtol=1e-5, atol=1e-5)


def test_nothing_and_everything_active():
    h = hidden(4)
    silent = make_sae(ss.JumpReLU(threshold=torch.full((F,), torch.inf)))
    assert not silent.encode(h).any()
    out = ops.steer(h, silent.plan(Edit.add({3: 2.0}), reconstruct=True))
    torch.testing.assert_close(out, (silent.b_dec + 2 * silent.W_dec[3]).expand(4, -1))
    loud = make_sae(ss.Identity())
    out = ops.steer(h, loud.plan(Edit.scale(dict.fromkeys(range(F), 2.0)), reconstruct=True))
    want = 2 * (loud.encode(h.double()) @ loud.W_dec.double()) + loud.b_dec
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)


def test_out():
    sae, h = make_sae(), hidden(6)
    plan = sae.plan(EDIT, reconstruct=True)
    want, target = ops.steer(h, plan), torch.empty_like(h)
    assert ops.steer(h, plan, out=target) is target and torch.equal(target, want)
    ops.steer(h, plan, out=h)
    assert torch.equal(h, want)


def test_gradients():
    sae, h = make_sae(), hidden(4).requires_grad_()
    ops.steer(h, sae.plan(EDIT, reconstruct=True)).square().sum().backward()
    twin = h.detach().double().requires_grad_()
    f = sae.encode(twin)
    keep = torch.ones(F, dtype=torch.float64)
    keep[[3, 50, 197, 7]] = 0
    moving = keep.expand_as(f).clone()
    moving[:, 60] *= f[:, 60].detach() > 0.75
    moving[:, 61] *= f[:, 61].detach() < 0.25
    shift = edited_codes(sae, twin.detach()) - f.detach() * moving
    sae.decode(f * moving + shift).square().sum().backward()
    torch.testing.assert_close(h.grad.double(), twin.grad, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.integers(0, F - 1), max_size=12), st.sampled_from(["jumprelu", "topk"]))
def test_setting_a_feature_to_what_it_is_changes_nothing(seed, features, kind):
    sae, h = make_sae(every_activation()[kind]), hidden(1, seed=seed)
    f = sae.encode(h)[0]
    out = ops.steer(h, sae.plan(Edit.set({j: float(f[j]) for j in features}), reconstruct=True))
    torch.testing.assert_close(out, sae.decode(f)[None], rtol=1e-5, atol=1e-5)
