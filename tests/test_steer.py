"""ops.steer as a user calls it, on whatever backend serves it here: results, routes, and bad input."""

import pytest
import torch

import sparsesteer as ss
from sparsesteer import SAE, Edit, reference

D, F = 48, 200
FP32 = {"rtol": 1e-6, "atol": 1e-6}  # of fp32 results beside the reference in fp64


def make_sae(activation=None, **options):
    generator = torch.Generator().manual_seed(0)
    return SAE(
        W_enc=torch.randn(D, F, generator=generator) / D**0.5,
        W_dec=torch.randn(F, D, generator=generator) / D**0.5,
        b_enc=torch.randn(F, generator=generator) * 0.1,
        b_dec=torch.randn(D, generator=generator) * 0.1,
        activation=activation or ss.JumpReLU(threshold=torch.full((F,), 0.2)),
        **options,
    )


EDIT = Edit.set({3: 2.0, 50: 1.0}) | Edit.scale({7: 0.0}) | Edit.add({9: 1.5}) | Edit.add({11: 1.0}, when_active=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def plan():
    return make_sae().plan(EDIT)


@pytest.fixture
def h():
    return torch.randn(5, D, generator=torch.Generator().manual_seed(1))


def truth(h, plan, strength=1.0, into=None, residual=None):
    """The reference in fp64 on flat tensors."""
    flat = [
        None if t is None else t.double().reshape(-1, t.shape[-1]) for t in (h, h if into is None else into, residual)
    ]
    wide = plan.to(dtype=torch.float64)
    per_token = strength.double().reshape(-1) if isinstance(strength, torch.Tensor) else None
    return reference.steer(
        *flat, wide.encoder, wide.decoder, wide.rows, wide.delta_bias, per_token,
        1.0 if per_token is not None else strength, plan.input_norm, plan.scale_rule, plan.gap, plan.preserve_norm,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(D,), (1, D), (1, 1, D), (2, 3, D), (2, 1, 2, D), (0, D), (2, 0, D)], ids=str)
def test_any_leading_shape(plan, shape):
    h = torch.randn(*shape)
    out = ss.ops.steer(h, plan)
    assert out.shape == h.shape
    torch.testing.assert_close(out.double().reshape(-1, D), truth(h, plan), **FP32)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("preserve_norm", [False, True])
def test_equals_editing_and_decoding(normalize, preserve_norm, h):
    """edit the activations, decode, add back the error"""
    sae = make_sae(normalize=normalize)
    f = sae.encode(h.double())
    edited = f.clone()
    edited[:, 3], edited[:, 50], edited[:, 7] = 2.0, 1.0, 0.0
    edited[:, 9] += 1.5
    edited[:, 11] += (f[:, 11] > 0).double()
    want = h.double() + sae.decode(edited, like=h.double()) - sae.decode(f, like=h.double())
    if preserve_norm:
        want = want * h.double().norm(dim=-1, keepdim=True) / want.norm(dim=-1, keepdim=True)
    out = ss.ops.steer(h, sae.plan(EDIT, preserve_norm=preserve_norm))
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(plan, h, dtype):
    h = h.to(dtype)
    out = ss.ops.steer(h, plan)
    assert out.dtype == dtype
    eps = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(out.double(), truth(h, plan), rtol=eps, atol=eps)


def test_plan_and_h_of_different_dtypes(plan, h):
    want = truth(h, plan)
    torch.testing.assert_close(ss.ops.steer(h, plan.to(dtype=torch.float64)).double(), want, **FP32)
    torch.testing.assert_close(ss.ops.steer(h, plan.to(dtype=torch.bfloat16)).double(), want, rtol=0.02, atol=0.02)
    torch.testing.assert_close(ss.ops.steer(h.double(), plan.to(dtype=torch.bfloat16)), want, rtol=0.02, atol=0.02)


def test_strength(plan, h):
    torch.testing.assert_close(ss.ops.steer(h, plan, 0.5).double(), truth(h, plan, 0.5), **FP32)
    assert torch.equal(ss.ops.steer(h, plan, 0), h)
    per_token = torch.tensor([0.0, 1.0, -2.0, 0.5, 0.0])
    out = ss.ops.steer(h, plan, per_token)
    torch.testing.assert_close(out.double(), truth(h, plan, per_token), **FP32)
    assert torch.equal(out[0], h[0]) and torch.equal(out[4], h[4])
    torch.testing.assert_close(ss.ops.steer(h, plan, torch.tensor(0.5)), ss.ops.steer(h, plan, 0.5))
    torch.testing.assert_close(ss.ops.steer(h.view(1, 5, D), plan, per_token[None]), out[None])


def test_into_and_residual(plan, h):
    w, residual = torch.randn_like(h), torch.randn_like(h)
    out = ss.ops.steer(h, plan, into=w, residual=residual)
    torch.testing.assert_close(out.double(), truth(h, plan, into=w, residual=residual), **FP32)
    assert not torch.equal(out, ss.ops.steer(h, plan, into=w))


def test_out_and_in_place(plan, h):
    want, before = ss.ops.steer(h, plan), h.clone()
    target = torch.empty_like(h)
    assert ss.ops.steer(h, plan, out=target) is target
    assert torch.equal(target, want) and torch.equal(h, before)
    ss.ops.steer(h, plan, out=h)
    assert torch.equal(h, want)
    cube = before.view(1, 5, D).clone()
    ss.ops.steer(cube, plan, out=cube)
    assert torch.equal(cube[0], want)


def test_non_contiguous(plan):
    h = torch.randn(D, 6).T
    assert not h.is_contiguous()
    torch.testing.assert_close(ss.ops.steer(h, plan), ss.ops.steer(h.contiguous(), plan))
    wide = torch.randn(4, 6, 2 * D)[:, ::2, :D]
    torch.testing.assert_close(ss.ops.steer(wide, plan), ss.ops.steer(wide.contiguous(), plan))
    expanded = torch.randn(1, D).expand(3, D)
    torch.testing.assert_close(ss.ops.steer(expanded, plan), ss.ops.steer(expanded.contiguous(), plan))


def test_the_short_way_and_the_dispatcher_agree(plan, h):
    short = ss.ops.steer(h, plan)
    with torch.profiler.profile() as profile:  # a watcher: the call goes through the dispatcher
        long = ss.ops.steer(h, plan)
    assert "sparsesteer::steer" in {event.name for event in profile.events()}
    assert torch.equal(short, long)


def test_gradients_reach_h_past_the_short_way(plan, h):
    leaf = h.clone().requires_grad_()
    ss.ops.steer(leaf, plan).square().sum().backward()
    mirror = h.double().requires_grad_()
    truth(mirror, plan).square().sum().backward()
    torch.testing.assert_close(leaf.grad.double(), mirror.grad, rtol=1e-4, atol=1e-4)


def test_fake_tensors_and_compile(plan, h):
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert ss.ops.steer(mode.from_tensor(h), plan).shape == h.shape
    compiled = torch.compile(lambda t: ss.ops.steer(t, plan) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h), ss.ops.steer(h, plan) + 1)


def test_topk_plan(h):
    sae = make_sae(ss.TopK(10))
    f = sae.encode(h.double())
    firing = f[0].nonzero()[:3, 0].tolist()
    out = ss.ops.steer(h, sae.plan(Edit.scale({j: 3.0 for j in firing})))
    edited = f.clone()
    edited[:, firing] *= 3
    torch.testing.assert_close(out.double(), h.double() + (edited - f) @ sae.W_dec.double(), rtol=1e-5, atol=1e-5)


def test_reconstruct_plan(h):
    sae = make_sae()
    f = sae.encode(h)
    f[:, 3] = 2.0
    out = ss.ops.steer(h, sae.plan(Edit.set({3: 2.0}), reconstruct=True))
    torch.testing.assert_close(out, sae.decode(f), rtol=1e-5, atol=1e-5)


def test_backends(plan, h):
    torch.testing.assert_close(ss.ops.steer(h, plan, backend="reference"), ss.ops.steer(h, plan))
    with pytest.raises(ValueError, match="unknown backend 'cpp'; use auto, native, triton, reference"):
        ss.ops.steer(h, plan, backend="cpp")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="'triton' was asked for and cannot run: .*CUDA"):
            ss.ops.steer(h, plan, backend="triton")


def test_empty_edit(h):
    assert torch.equal(ss.ops.steer(h, make_sae().plan(Edit())), h)


BAD = [
    (lambda h, p: ss.ops.steer(h.long(), p), TypeError, "h should be fp32, fp64, fp16 or bf16, got torch.int64"),
    (lambda h, p: ss.ops.steer(h.bool(), p), TypeError, "got torch.bool"),
    (
        lambda h, p: ss.ops.steer(h[:, :40], p),
        ValueError,
        r"\[\.\.\., 48\], the width of the plan's SAE, got \[5, 40\]",
    ),
    (lambda h, p: ss.ops.steer(torch.tensor(1.0), p), ValueError, r"got \[\]"),
    (lambda h, p: ss.ops.steer(h, p, float("nan")), ValueError, "strength should be finite, got nan"),
    (lambda h, p: ss.ops.steer(h, p, torch.ones(4)), ValueError, r"have shape \[5\], one per token, got \[4\]"),
    (lambda h, p: ss.ops.steer(h, p, into=h[:3]), ValueError, r"into should have shape \[5, 48\], got \[3, 48\]"),
    (lambda h, p: ss.ops.steer(h, p, into=h.double()), TypeError, "into should have the dtype of h"),
    (lambda h, p: ss.ops.steer(h, p, residual=h[:1]), ValueError, r"residual should have shape \[5, 48\]"),
    (lambda h, p: ss.ops.steer(h, p, out=torch.empty(5, 47)), ValueError, r"out should have shape \[5, 48\]"),
    (lambda h, p: ss.ops.steer(h, p, out=torch.empty(48, 5).T), ValueError, "out should be contiguous"),
    (lambda h, p: ss.ops.steer(h.to("meta"), p), ValueError, r"plan is on cpu, h on meta; use plan.to\('meta'\)"),
]


@pytest.mark.parametrize("call, error, message", BAD, ids=[b[2][:40] for b in BAD])
def test_bad_input(plan, h, call, error, message):
    with pytest.raises(error, match=message):
        call(h, plan)


def test_out_may_not_overlap_in_part(plan):
    memory = torch.randn(7, D)
    with pytest.raises(ValueError, match="out overlaps an input in part"):
        ss.ops.steer(memory[:5], plan, out=memory[1:6])
    ss.ops.steer(memory[:3], plan, out=memory[3:6])


def test_in_place_under_autograd(plan, h):
    leaf = h.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be recorded by autograd"):
        ss.ops.steer(leaf, plan, out=torch.empty_like(h))
    with torch.no_grad():
        ss.ops.steer(leaf, plan, out=leaf)
    assert not torch.equal(leaf, h)


def test_plan_that_lost_its_sae(h, tmp_path):
    path = make_sae(ss.TopK(10)).plan(Edit.scale({1: 2.0})).save(tmp_path / "plan.safetensors")
    with pytest.raises(ValueError, match="needs its SAE"):
        ss.ops.steer(h, ss.SteeringPlan.load(path))
