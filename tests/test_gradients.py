"""Gradients of the ops, and their manners: opcheck, torch.compile, inference_mode."""

import itertools

import by_loops
import pytest
import torch

import sparsesteer as ss
from sparsesteer import SAE, Edit, reference
from sparsesteer._layout import Column, InputNorm, OutputScale

OPS = torch.ops.sparsesteer
ALL_RULES = list(itertools.product(InputNorm, OutputScale, (False, True)))
# the step of a threshold or gate has no gradient
SMOOTH = [c for c in Column if c not in (Column.THRESHOLD, Column.GATE)]


def arguments(seed=0, n=4, d=5, d_out=3, m=6, dtype=torch.float64):
    """Tensor arguments of ``steer`` by name: rows that fire and rows that do not, gated and not."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    rows = rand(m, 10)
    rows[:, Column.GATE] = (rows[:, Column.GATE] > 0).to(dtype)
    return dict(
        x=rand(n, d), into=rand(n, d_out), residual=rand(n, d), encoder=rand(m, d), decoder=rand(m, d_out), rows=rows,
        delta_bias=rand(d_out), token_strength=rand(n),
    )  # fmt: skip


def smooth_steer(case, scalars):
    """(steer as a function of its tensors with the smooth columns in place of rows, those tensors)."""
    fixed = case["rows"]

    def function(x, into, residual, encoder, decoder, smooth, delta_bias, token_strength):
        rows = fixed.clone()
        rows[:, SMOOTH] = smooth
        return OPS.steer(x, into, residual, encoder, decoder, rows, delta_bias, token_strength, *scalars)

    inputs = case | {"rows": fixed[:, SMOOTH]}
    return function, [t.clone().requires_grad_() for t in inputs.values()]


@pytest.mark.parametrize("norm, rule, preserve_norm", ALL_RULES)
def test_gradcheck(norm, rule, preserve_norm):
    function, inputs = smooth_steer(arguments(4), (0.7, norm, rule, 1.3, preserve_norm))
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("absent", ["residual", "delta_bias", "token_strength"])
def test_gradcheck_without_an_optional_argument(absent):
    case = arguments(4)
    function, inputs = smooth_steer(case, (0.7, 1, 1, 0.0, True))
    names = list(case)

    def without(*present):
        given = iter(present)
        return function(*(None if name == absent else next(given) for name in names))

    assert torch.autograd.gradcheck(without, [t for name, t in zip(names, inputs, strict=True) if name != absent])


def test_gradient_at_strength_0():
    case = arguments(4)
    case["token_strength"][::2] = 0
    function, inputs = smooth_steer(case, (0.7, 0, 0, 0.0, False))
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("norm, rule, preserve_norm", ALL_RULES)
def test_gradient_equals_autograd_through_the_reference(norm, rule, preserve_norm):
    case = arguments(6, n=9, d=17, d_out=11, m=13)
    scalars = (0.7, norm, rule, 1.3, preserve_norm)
    cotangent = torch.randn(9, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for op in (OPS.steer, reference.steer):
        inputs = {name: t.clone().requires_grad_() for name, t in case.items()}
        found.append(torch.autograd.grad(op(*inputs.values(), *scalars), list(inputs.values()), cotangent))
    for name, ours, theirs in zip(case, *found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gradients_come_in_the_dtype_of_their_argument(dtype):
    case = arguments(2, dtype=torch.float32)
    for name in ("x", "into", "residual"):
        case[name] = case[name].to(dtype)
    inputs = [t.requires_grad_() for t in case.values()]
    OPS.steer(*inputs, 1.0, 0, 0, 0.0, False).float().sum().backward()
    assert all(t.grad.dtype == t.dtype and t.grad.abs().sum() > 0 for t in inputs)


def whole_case(dtype=torch.float64, f=9):
    """Arguments of the ops that read a whole SAE of f features, D = D_out = 5."""
    case = arguments(8, d=5, d_out=5, m=f, dtype=dtype)
    case["rows"][:, : Column.C0] = by_loops.relu_rows(f)[:, : Column.C0].to(dtype)
    return case


def topk_arguments(case):
    features = torch.tensor([0, 5, 7])
    return (
        case["x"], case["into"], case["residual"], case["encoder"], case["rows"][:, 0] + 0.5, features, 4,
        case["decoder"][:3], case["rows"][:3], case["delta_bias"], case["token_strength"], 0.7, 1, 1, 0.0, True,
    )  # fmt: skip


def reconstruct_arguments(case):
    return (
        case["x"], case["into"], case["residual"], case["encoder"], case["rows"], 4, torch.tensor([1, 4, 6]),
        case["rows"][:3], case["decoder"], case["delta_bias"], case["token_strength"], 0.7, 1, False,
    )  # fmt: skip


def slots_arguments(case):
    slot = torch.tensor([1, -1, 0, 1], dtype=torch.int32)
    slots = torch.tensor([[0, 2, 1], [2, 3, 1]], dtype=torch.int32)
    entry_row = torch.tensor([4, 0, 0, 1, 5], dtype=torch.int32)
    slot_bias = torch.stack([-case["delta_bias"], case["delta_bias"]])
    return (
        case["x"], case["into"], case["residual"], slot, slots, case["encoder"], case["decoder"], entry_row,
        case["rows"][:5], slot_bias, case["token_strength"], 0.7, 0, 0, 0.0, False,
    )  # fmt: skip


def steer_arguments(case):
    return (*case.values(), 0.7, 1, 1, 0.0, True)


def encode_arguments(case):
    return case["x"], case["encoder"], case["rows"], 4, 4, 1


def decode_arguments(case):
    indices = torch.tensor([[0, 3, -1, 2, 2]] * 4, dtype=torch.int32)
    return case["x"], indices, case["decoder"], case["into"][0]


def activation_arguments(case):
    return case["x"], case["residual"], case["encoder"], case["rows"], 1


def activation_topk_arguments(case):
    features = torch.tensor([0, 5, 7])
    return case["x"], case["residual"], case["encoder"], case["rows"][:, 0] + 0.5, features, 4, case["rows"][:3], 1


ARGUMENTS = {
    "steer": steer_arguments,
    "steer_topk": topk_arguments,
    "steer_reconstruct": reconstruct_arguments,
    "steer_slots": slots_arguments,
    "encode": encode_arguments,
    "decode": decode_arguments,
    "activations": activation_arguments,
    "activations_topk": activation_topk_arguments,
}


@pytest.mark.parametrize("op", [name for name in ARGUMENTS if name != "steer"])
def test_gradcheck_of_the_other_ops(op):
    given = ARGUMENTS[op](whole_case())
    where = [i for i, a in enumerate(given) if isinstance(a, torch.Tensor) and a.is_floating_point()]
    where = [i for i in where if given[i].shape[-1:] != (10,)]  # row tables hold the steps, checked with steer

    def function(*tensors):
        args = list(given)
        for i, tensor in zip(where, tensors, strict=True):
            args[i] = tensor
        out = getattr(OPS, op)(*args)
        return out if isinstance(out, torch.Tensor) else out[0]

    assert torch.autograd.gradcheck(function, [given[i].clone().requires_grad_() for i in where])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", ARGUMENTS)
def test_opcheck(op, dtype):
    torch.library.opcheck(getattr(OPS, op).default, ARGUMENTS[op](whole_case(dtype)))


@pytest.mark.parametrize("op", ["steer", "steer_topk", "steer_reconstruct", "activations", "activations_topk"])
def test_opcheck_with_gradients(op):
    arguments = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in ARGUMENTS[op](whole_case(torch.float32))
    ]
    torch.library.opcheck(getattr(OPS, op).default, tuple(arguments))


def test_opcheck_steer_out():
    case = whole_case(torch.float32)
    torch.library.opcheck(OPS.steer_out.default, steer_arguments(case), {"out": torch.empty_like(case["into"])})


def random_sae(activation, d=16, f=40):
    g = torch.Generator().manual_seed(3)
    return SAE(
        W_enc=torch.randn(d, f, generator=g) / 4, W_dec=torch.randn(f, d, generator=g) / 4, activation=activation
    )


PLANS = {
    "encoded and constant": random_sae(ss.JumpReLU(0.1)).plan(Edit.scale({3: 2, 5: 0}) | Edit.add({7: 1.5})),
    "nothing encoded": random_sae(ss.ReLU()).plan(Edit.add({7: 1.5})),
    "topk": random_sae(ss.TopK(5)).plan(Edit.set({3: 2, 5: 1})),
    "reconstruct": random_sae(ss.TopK(5)).plan(Edit.set({3: 2, 5: 1}), reconstruct=True),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_compile_without_a_graph_break_for_any_number_of_tokens(plan):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    steer = torch.compile(lambda h: ss.ops.steer(h, plan, 0.5) + 1, fullgraph=True, dynamic=True, backend=counting)
    for n in (3, 8, 21):
        h = torch.randn(2, n, 16, generator=torch.Generator().manual_seed(n))
        want = ss.ops.steer(h, plan, 0.5) + 1  # first: a plan of the whole SAE folds its weights once
        assert torch.equal(steer(h), want)
    assert len(graphs) == 1


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_compiled_gradient_equals_the_eager_one(plan):
    steer = torch.compile(lambda h, s: ss.ops.steer(h, plan, s), fullgraph=True, backend="aot_eager")
    h, s = torch.randn(2, 6, 16), torch.rand(2, 6) + 0.5
    found = []
    for function in (steer, lambda h, s: ss.ops.steer(h, plan, s)):
        inputs = h.clone().requires_grad_(), s.clone().requires_grad_()
        found.append(torch.autograd.grad(function(*inputs).square().sum(), inputs))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_inference_mode(plan):
    h = torch.randn(5, 16)
    want = ss.ops.steer(h, plan)
    with torch.inference_mode():
        assert torch.equal(ss.ops.steer(h, plan), want)
        assert torch.equal(ss.ops.steer(h.clone(), plan), want)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("in_place", [False, True])
def test_out_under_autograd_raises(plan, in_place):
    h = torch.randn(5, 16, requires_grad=True) * 1
    with pytest.raises(RuntimeError, match=r"autograd.*no_grad"):
        ss.ops.steer(h, plan, out=h if in_place else torch.empty(5, 16))
    with torch.no_grad():
        want = ss.ops.steer(h, plan)
        assert torch.equal(ss.ops.steer(h, plan, out=torch.empty(5, 16)), want)


def test_no_gradient_flows_to_the_weights_of_an_sae():
    W_enc = torch.randn(4, 6, requires_grad=True)
    sae = SAE(W_enc=W_enc, W_dec=torch.randn(6, 4, requires_grad=True), activation=ss.ReLU())
    plan = sae.plan(Edit.set({1: 2}) | Edit.add({2: 1}))
    assert not ss.ops.steer(torch.randn(3, 4), plan).requires_grad
