"""``steer`` on a CUDA device: real bf16, tensor cores, graphs; against the reference in fp64."""

import pytest
import torch
from steer_cases import arguments, edit_error, expected, near_a_jump, rounding_excess

import sparsesteer as ss
from sparsesteer._layout import InputNorm, OutputScale

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

EDIT_ERROR = 1e-5
BESIDE_ROUNDING = 1e-4  # of an element, over the size of its row's edit; the rounding of the result itself is free
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# (h, rows)
PAIRS = [("bf16", "fp32"), ("bf16", "bf16"), ("fp16", "fp32"), ("fp32", "fp32"), ("fp32", "bf16")]
LOADED = {
    "input_norm": InputNorm.LAYER_NORM, "scale_rule": OutputScale.STD, "keep_norm": True,
    "residual": True, "bias": True, "token_strength": True,
}  # fmt: skip


def check(given):
    """The op against fp64, without the few tokens whose side of a jump rounding may decide."""
    out = torch.ops.sparsesteer.steer(*given.values())
    safe = ~near_a_jump(given)
    assert (~safe).sum() <= 1 + 0.05 * len(safe)
    out, want, into = out[safe], expected(given)[safe], given["into"][safe]
    if out.dtype == torch.float32:
        assert edit_error(out, want, into) <= EDIT_ERROR
    else:
        assert rounding_excess(out, want, into) <= BESIDE_ROUNDING


@pytest.mark.parametrize(("m", "width"), [(1, 576), (16, 2304), (64, 2304), (200, 576), (1024, 2304)])
@pytest.mark.parametrize("n", [1, 2, 8, 33, 128, 512, 2000])
@pytest.mark.parametrize(("dtype", "rows"), PAIRS)
def test_shapes_and_types(dtype, rows, n, m, width):
    check(arguments(n, m, width, dtype=DTYPES[dtype], row_dtype=DTYPES[rows], device="cuda"))


@pytest.mark.parametrize(("n", "m"), [(1, 64), (33, 200), (2000, 1024)])
@pytest.mark.parametrize(("dtype", "rows"), PAIRS)
def test_everything_at_once(dtype, rows, n, m):
    check(arguments(n, m, 2304, dtype=DTYPES[dtype], row_dtype=DTYPES[rows], device="cuda", **LOADED))


@pytest.mark.parametrize("keep_norm", [False, True], ids=["", "keep_norm"])
@pytest.mark.parametrize("scale_rule", OutputScale, ids=lambda rule: rule.name)
@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
@pytest.mark.parametrize("n", [1, 40, 1100])
def test_every_rule(n, input_norm, scale_rule, keep_norm):
    check(arguments(n, 40, 200, 77, device="cuda", input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm))


@pytest.mark.parametrize("n", [1, 40, 1100])
def test_in_place(n):
    given = arguments(n, 200, 576, device="cuda")
    want = torch.ops.sparsesteer.steer(*given.values())
    torch.ops.sparsesteer.steer_out(*given.values(), out=given["into"])
    assert torch.equal(given["into"], want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 40, 1100])
def test_same_bits_twice_and_untouched_tokens_keep_theirs(n, dtype):
    given = arguments(n, 64, 576, dtype=DTYPES[dtype], device="cuda", token_strength=True)
    given["token_strength"][0] = 0
    given["into"][:, ::5] = -0.0
    first, second = (torch.ops.sparsesteer.steer(*given.values()) for _ in range(2))
    bits = torch.int32 if dtype == "fp32" else torch.int16
    assert torch.equal(first.view(bits), second.view(bits))
    masked = given["token_strength"] == 0
    assert torch.equal(first[masked].view(bits), given["into"][masked].view(bits))


def plan_of_width(width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(width, 300, generator=generator) / width**0.5
    sae = ss.SAE(
        W_enc=W_enc, W_dec=W_enc.T.contiguous(), b_enc=torch.zeros(300), b_dec=torch.zeros(width), activation=ss.ReLU()
    )
    edit = ss.Edit.set({i: 3.0 for i in range(0, 40)}) | ss.Edit.scale({i: 0.5 for i in range(100, 140)})
    return sae.plan(edit).to("cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 40, 1100])
def test_a_graph_replays_on_changed_inputs(n, dtype):
    plan = plan_of_width(576)
    h = torch.randn(n, 576, device="cuda", dtype=DTYPES[dtype])
    strength = torch.ones(n, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ss.ops.steer(h, plan, strength)  # compiles outside the graph
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steered = ss.ops.steer(h, plan, strength)
    for _ in range(2):
        h.normal_()
        strength.uniform_(-1, 1)
        graph.replay()
        assert torch.equal(steered, ss.ops.steer(h, plan, strength))


@pytest.mark.parametrize("n", [1, 40])
def test_compiles_without_a_graph_break(n):
    plan = plan_of_width(576)
    h = torch.randn(n, 576, device="cuda")
    compiled = torch.compile(lambda h: 2 * ss.ops.steer(h + 1, plan, 0.5), fullgraph=True)
    torch.testing.assert_close(compiled(h), 2 * ss.ops.steer(h + 1, plan, 0.5), rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_the_reference():
    plan = plan_of_width(576)
    gradients = []
    for run in (
        lambda h: ss.ops.steer(h, plan, 0.5),
        lambda h: ss.ops.steer(h.double(), plan, 0.5, backend="reference"),
    ):
        h = torch.randn(40, 576, generator=torch.Generator().manual_seed(1)).cuda().requires_grad_()
        run(h).square().sum().backward()
        gradients.append(h.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_op_is_registered_as_torch_wants_it():
    given = arguments(3, 5, 64, 40, device="cuda", residual=True, bias=True, token_strength=True)
    torch.library.opcheck(torch.ops.sparsesteer.steer.default, tuple(given.values()))


def test_rows_in_bf16_are_a_plan_of_their_own():
    plan = plan_of_width(576, torch.bfloat16)
    h = torch.randn(40, 576, device="cuda", dtype=torch.bfloat16)
    want = ss.ops.steer(h, plan, backend="reference")
    torch.testing.assert_close(ss.ops.steer(h, plan), want, rtol=2**-7, atol=1e-2)
