"""What the CUDA ops refuse, and how the dispatcher hears of it; through the real bindings, emulated."""

import emulated_cuda
import pytest
import sae_cases
import torch
from emulated_cuda import ENOUGH_SHARED
from steer_cases import arguments

from sparsesteer import _dispatch, _native

if emulated_cuda.missing():
    pytest.skip(emulated_cuda.missing(), allow_module_level=True)


@pytest.fixture(scope="module")
def cuda():
    return emulated_cuda.load()


@pytest.fixture(autouse=True)
def device(cuda):
    cuda.set_device(3, ENOUGH_SHARED, "rising")


REFUSED = {
    "tokens": ("steer_topk", (9, 64, 50, 5, 7), {}, "at most 8 tokens, x has 9"),
    "width": ("steer_topk", (2, 60, 50, 5, 7), {}, "8 numbers at a time, the width is 60"),
    "edits": ("steer_topk", (1, 64, 1100, 1025, 7), {}, "at most 1024 edited features"),
    "fp64": ("steer_topk", (1, 64, 50, 5, 7), {"dtype": torch.float64}, "serve fp32, bf16 and fp16, x is Double"),
    "reconstruct tokens": ("steer_reconstruct", (9, 64, 50, 5, 7), {}, "at most 8 tokens, x has 9"),
    "reconstruct width": ("steer_reconstruct", (2, 60, 50, 5, 7), {}, "8 numbers at a time, the width is 60"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_calls_say_why_before_and_when_they_are_made(cuda, case):
    op, shape, options, why = REFUSED[case]
    given = getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(*shape, **options)
    assert why in getattr(cuda, f"{op}_cuda_refusal")(*given.values())
    with pytest.raises((RuntimeError, TypeError), match=r"fp16|" + why):
        getattr(cuda, f"{op}_cuda")(*given.values())


def test_steer_refuses_many_tokens_and_fp64(cuda):
    assert cuda.steer_cuda_refusal(*arguments(32, 4, 64).values()) == ""
    assert "at most 32 tokens, x has 33" in cuda.steer_cuda_refusal(*arguments(33, 4, 64).values())
    assert "x is Double" in cuda.steer_cuda_refusal(*arguments(3, 4, 64, dtype=torch.float64).values())


@pytest.mark.parametrize("op", ["steer_topk", "steer_reconstruct"])
def test_shared_memory_decides(cuda, op):
    given = getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(8, 512, 50, 5, 7)
    assert getattr(cuda, f"{op}_cuda_refusal")(*given.values()) == ""
    cuda.set_device(3, 24 << 10, "rising")
    assert "do not fit in the device's shared memory" in getattr(cuda, f"{op}_cuda_refusal")(*given.values())


@pytest.mark.parametrize("op", ["steer_topk", "steer_reconstruct"])
def test_an_encoder_that_cannot_be_streamed_is_refused(cuda, op):
    given = getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(2, 64, 50, 5, 7)
    given["encoder"] = given["encoder"].T.contiguous().T
    assert "contiguous, aligned encoder" in getattr(cuda, f"{op}_cuda_refusal")(*given.values())


WRONG = {
    "into": (torch.zeros(3, 64), "into should have shape"),
    "residual": (torch.zeros(2, 63), "residual should have shape"),
    "decoder": (torch.zeros(5, 64), "decoder should have shape"),
    "rows": (torch.zeros(4, 9), "rows should have shape"),
    "delta_bias": (torch.zeros(64, dtype=torch.float64), "delta_bias should be Float"),
    "token_strength": (torch.zeros(1), "token_strength should have shape"),
    "encoder": (torch.zeros(4, 64, dtype=torch.float16), "encoder should be fp32 or bf16"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_do_not_fit_never_reach_a_kernel(cuda, name):
    wrong, message = WRONG[name]
    given = arguments(2, 4, 64) | {name: wrong}
    with pytest.raises(RuntimeError, match=message):
        cuda.steer_cuda(*given.values())


def test_no_tokens_are_no_launch(cuda):
    assert cuda.steer_cuda(*arguments(0, 4, 64).values()).shape == (0, 64)
    for op in ("steer_topk", "steer_reconstruct"):
        given = getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(0, 64, 50, 5, 7)
        assert getattr(cuda, f"{op}_cuda")(*given.values()).shape == (0, 64)


def test_the_dispatcher_asks_the_extension(cuda, monkeypatch):
    monkeypatch.setattr(_native, "extension", cuda)
    monkeypatch.setattr(_native, "reason", "")
    assert set(_native.cuda_ops()) == {
        "steer", "steer_out", "steer_slots", "steer_slots_out", "steer_topk", "steer_reconstruct",
    }  # fmt: skip
    few, many = arguments(2, 4, 64), arguments(40, 4, 64)
    assert _native.cuda_refusal("steer", *few.values()) == ""
    assert "at most 32 tokens" in _native.cuda_refusal("steer", *many.values())
    assert "serves CPU tensors" in _native.cuda_refusal("encode", few["x"])
    out = torch.empty_like(few["into"])
    _dispatch.implementation("steer_out", "native", "cuda")(*few.values(), out=out)
    assert torch.equal(out, _dispatch.implementation("steer", "native", "cuda")(*few.values()))
