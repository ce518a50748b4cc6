"""The CUDA kernels on a CUDA device, against the reference in fp64; needs a build with SPARSESTEER_BUILD=cuda."""

import emulated_cuda
import pytest
import sae_cases
import torch
from emulated_cuda import RULES, bits, check
from steer_cases import arguments, expected, near_a_jump

from sparsesteer import _dispatch, _native
from sparsesteer._layout import InputNorm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not _native.cuda_ops(), reason="the extension was not built with CUDA"),
]

DTYPES = [pytest.param(dtype, id=str(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
WHOLE_SAE = ("steer_topk", "steer_reconstruct")


@pytest.fixture
def cuda():
    return _native.extension


def whole_sae(op, *shape, **options):
    return getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(*shape, device="cuda", **options)


@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 2304), (1, 64, 2304), (8, 16, 576), (32, 256, 2304), (3, 5, 77)])
def test_steer(cuda, n, m, width, dtype, rows):
    given = arguments(n, m, width, dtype=dtype, row_dtype=rows, device="cuda", residual=True, bias=m == 16)
    clear = ~near_a_jump(given)
    emulated_cuda.compare(cuda.steer_cuda(*given.values())[clear], expected(given)[clear], given["into"][clear])


@pytest.mark.parametrize(("input_norm", "scale_rule", "keep_norm"), RULES)
def test_slots(cuda, input_norm, scale_rule, keep_norm):
    given = sae_cases.slots_arguments(
        31, 576, 40, [5, 0, 70, 3], input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm,
        activation="relu", residual=True, device="cuda",
    )  # fmt: skip
    check(cuda, "steer_slots", given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", WHOLE_SAE)
@pytest.mark.parametrize(
    ("n", "d", "f", "m", "k"), [(1, 2304, 16384, 64, 100), (8, 576, 4608, 16, 32), (5, 64, 301, 70, 9)]
)
def test_whole_sae_in_ties(cuda, op, n, d, f, m, k, dtype):
    rows = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    given = whole_sae(op, n, d, f, m, k, whole=True, duplicates=True, dtype=dtype, row_dtype=rows)
    check(cuda, op, given)


@pytest.mark.parametrize("op", WHOLE_SAE)
@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
def test_same_bits_every_time(cuda, op, input_norm):
    given = whole_sae(op, 8, 576, 4608, 64, 32, input_norm=input_norm, keep_norm=True)
    first = getattr(cuda, f"{op}_cuda")(*given.values())
    for _ in range(20):
        assert torch.equal(bits(getattr(cuda, f"{op}_cuda")(*given.values())), bits(first))


@pytest.mark.parametrize("op", ["steer", *WHOLE_SAE])
def test_a_graph_replays_on_changed_inputs(cuda, op):
    given = arguments(4, 64, 576, device="cuda") if op == "steer" else whole_sae(op, 4, 576, 4608, 64, 32)
    run = getattr(cuda, f"{op}_cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*given.values())
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*given.values())
    for _ in range(3):
        given["x"].normal_()
        graph.replay()
        assert torch.equal(bits(out), bits(run(*given.values())))


def test_auto_takes_the_extension_for_few_tokens_only():
    few, many = arguments(1, 4, 64, device="cuda"), arguments(300, 4, 64, device="cuda")
    assert _dispatch.resolve("auto", few["x"], "steer", *list(few.values())[1:]) == "native"
    assert _dispatch.resolve("auto", many["x"], "steer", *list(many.values())[1:]) == "triton"
