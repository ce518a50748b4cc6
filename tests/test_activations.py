"""ops.activations as a user calls it: the SAE's own activations of a plan's features, on whatever backend serves."""

import pytest
import torch
from small_sae import D, F, every_activation, hidden, make_sae

import sparsesteer as ss
from sparsesteer import Edit

FEATURES = [3, 7, 50, 199]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def watched(sae, **options):
    return sae.plan(Edit.ablate(FEATURES), **options)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("activation", every_activation().values(), ids=every_activation())
def test_they_are_the_saes_own(activation, normalize):
    sae, h = make_sae(activation, normalize=normalize), hidden(40)
    f = ss.ops.activations(h, watched(sae))
    torch.testing.assert_close(f.double(), sae.encode(h.double())[:, FEATURES], **CLOSE)
    assert (f != 0).any()


@pytest.mark.parametrize("activation", every_activation().values(), ids=every_activation())
def test_a_reconstruct_plan(activation):
    sae, h = make_sae(activation), hidden(40)
    f = ss.ops.activations(h, watched(sae, reconstruct=True))
    torch.testing.assert_close(f.double(), sae.encode(h.double())[:, FEATURES], **CLOSE)


def test_another_activation_than_the_saes():
    sae, h = make_sae(ss.TopK(7)), hidden(40)
    f = ss.ops.activations(h, watched(sae, activation=ss.ReLU()))
    torch.testing.assert_close(f, sae.with_activation(ss.ReLU()).encode(h)[:, FEATURES], **CLOSE)


def test_columns_are_the_encoded_features_of_the_plan():
    plan = make_sae().plan(Edit.set({50: 1.0, 3: 2.0}) | Edit.add({9: 1.5}))
    assert plan.features.tolist() == [3, 50]
    f = ss.ops.activations(hidden(), plan)
    assert torch.equal(f, ss.ops.activations(hidden(), make_sae().plan(Edit.ablate([3, 50]))))
    assert ss.ops.activations(hidden(), make_sae().plan(Edit.add({9: 1.5}))).shape == (5, 0)


@pytest.mark.parametrize("shape", [(D,), (1, D), (2, 3, D), (2, 1, 2, D), (0, D), (2, 0, D)], ids=str)
@pytest.mark.parametrize("activation", [ss.ReLU(), ss.TopK(7)], ids=["relu", "topk"])
def test_any_leading_shape(shape, activation):
    plan, h = watched(make_sae(activation)), torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    f = ss.ops.activations(h, plan)
    assert f.shape == (*shape[:-1], len(FEATURES))
    flat = ss.ops.activations(h.reshape(-1, D), plan)
    assert torch.equal(f.reshape(-1, len(FEATURES)), flat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype, rows):
    sae, h = make_sae(), hidden(dtype=dtype)
    f = ss.ops.activations(h, watched(sae).to(dtype=rows))
    assert f.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 0.02 if rows == torch.bfloat16 else 1e-5
    torch.testing.assert_close(f.double(), sae.encode(h.double())[:, FEATURES], rtol=tolerance, atol=tolerance)


def test_residual():
    plan, h, residual = watched(make_sae()), hidden(), hidden(seed=2)
    f = ss.ops.activations(h, plan, residual=residual)
    torch.testing.assert_close(f, ss.ops.activations(h + residual, plan), **CLOSE)


def test_non_contiguous():
    plan = watched(make_sae())
    h = torch.randn(4, 6, 2 * D)[:, ::2, :D]
    assert torch.equal(ss.ops.activations(h, plan), ss.ops.activations(h.contiguous(), plan))


@pytest.mark.parametrize("activation", [ss.JumpReLU(0.2), ss.TopK(7)], ids=["jumprelu", "topk"])
def test_whole_numbers_are_exact(activation):
    sae = make_sae(activation, whole=True)
    plan, h = sae.plan(Edit.ablate(range(F))), torch.randint(-2, 3, (30, D)).float()
    assert torch.equal(ss.ops.activations(h, plan), sae.encode(h))


@pytest.mark.parametrize("shape", [(5, D), (2, 3, D), (D,), (0, D)], ids=str)
def test_the_short_way_and_the_dispatcher_agree(shape):
    plan, h = watched(make_sae()), torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    short = ss.ops.activations(h, plan, residual=h)
    with torch.profiler.profile() as profile:  # a watcher: the call goes through the dispatcher
        long = ss.ops.activations(h, plan, residual=h)
    assert "sparsesteer::activations" in {event.name for event in profile.events()}
    assert short.shape == long.shape and torch.equal(short, long)


@pytest.mark.parametrize("activation", [ss.ReLU(), ss.TopK(20)], ids=["relu", "topk"])
def test_gradient_reaches_h(activation):
    plan, h = make_sae(activation).plan(Edit.ablate(range(0, F, 5))), hidden().requires_grad_()
    grads = []
    for backend in ("auto", "reference"):
        f = ss.ops.activations(h, plan, backend=backend)
        grads.append(torch.autograd.grad(f.square().sum(), h)[0])
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_fake_tensors_and_compile():
    h = hidden()
    for activation in (ss.ReLU(), ss.TopK(7)):
        plan = watched(make_sae(activation))
        want = ss.ops.activations(h, plan)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert ss.ops.activations(mode.from_tensor(h), plan).shape == want.shape
        compiled = torch.compile(lambda t, plan=plan: ss.ops.activations(t, plan) + 1, fullgraph=True, backend="eager")
        assert torch.equal(compiled(h), want + 1)
    torch.compiler.reset()


BAD = [
    (lambda h, p: ss.ops.activations(h.long(), p), TypeError, "activations: h should be fp32, fp64, fp16 or bf16"),
    (lambda h, p: ss.ops.activations(h[:, :40], p), ValueError, r"\[\.\.\., 48\], the width of the plan's SAE"),
    (lambda h, p: ss.ops.activations(torch.tensor(1.0), p), ValueError, r"got \[\]"),
    (lambda h, p: ss.ops.activations(h, p, residual=h[:1]), ValueError, r"residual should have shape \[5, 48\]"),
    (lambda h, p: ss.ops.activations(h, p, residual=h.double()), TypeError, "residual should have the dtype of h"),
    (lambda h, p: ss.ops.activations(h.to("meta"), p), ValueError, r"plan is on cpu, h on meta"),
    (lambda h, p: ss.ops.activations(h, p, backend="cpp"), ValueError, "unknown backend 'cpp'"),
]


@pytest.mark.parametrize("call, error, message", BAD, ids=[b[2][:40] for b in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(hidden(), watched(make_sae()))


def test_a_plan_that_lost_its_sae(tmp_path):
    path = watched(make_sae(ss.TopK(7))).save(tmp_path / "plan.safetensors")
    with pytest.raises(ValueError, match="activations: this plan needs its SAE"):
        ss.ops.activations(hidden(), ss.SteeringPlan.load(path))
