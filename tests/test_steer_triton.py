"""The Triton kernels in Triton's interpreter, against the reference in fp64.

A process of its own: TRITON_INTERPRET=1 must stand before the kernels are imported, and the op must not be native.
"""

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1" or os.environ.get("SPARSESTEER_BACKEND") != "triton":
    pytest.skip("needs TRITON_INTERPRET=1 SPARSESTEER_BACKEND=triton", allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from steer_cases import arguments, edit_error, expected, rounding_excess  # noqa: E402

import sparsesteer as ss  # noqa: E402
from sparsesteer._layout import Column, InputNorm, OutputScale  # noqa: E402
from sparsesteer.kernels import rules  # noqa: E402
from sparsesteer.kernels import steer as steer_kernels  # noqa: E402
from sparsesteer.kernels.tiling import SteerTiling  # noqa: E402

# NumPy warns of infinities that a GPU meets in silence and tl.where drops
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

EDIT_ERROR = 1e-5


def split_form(tokens, rows, step, width):
    split_width = step if width <= 64 else 2 * step
    return SteerTiling(tokens, rows, step, -(-width // split_width), split_width, 32, 64, 4)


def whole_form(tokens, rows, step, width):
    return SteerTiling(tokens, rows, step, 1, width, 16, 64, 4)


FORMS = {
    "split": lambda n, m, width, out_width: split_form(16, 16, 32, width),
    "whole": lambda n, m, width, out_width: whole_form(16, 16, 64, width),
    "split_one_token": lambda n, m, width, out_width: split_form(1, 16, 32, width),
    "whole_one_token": lambda n, m, width, out_width: whole_form(1, 32, 128, width),
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    monkeypatch.setattr(steer_kernels, "steer_tiling", FORMS[request.param])
    return request.param


@pytest.fixture(params=("split", "whole"))
def tile_form(request, monkeypatch):
    monkeypatch.setattr(steer_kernels, "steer_tiling", FORMS[request.param])
    return request.param


def check(given):
    out = steer_kernels.steer(*given.values())
    assert out.dtype == given["into"].dtype
    assert edit_error(out, expected(given), given["into"]) <= EDIT_ERROR


@pytest.mark.parametrize("keep_norm", [False, True], ids=["", "keep_norm"])
@pytest.mark.parametrize("scale_rule", OutputScale, ids=lambda rule: rule.name)
@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
def test_every_rule(tile_form, input_norm, scale_rule, keep_norm):
    check(arguments(5, 20, 77, input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm, token_strength=True))


@pytest.mark.parametrize(
    ("n", "m", "width"),
    [(1, 1, 64), (1, 40, 200), (3, 5, 77), (3, 40, 64), (17, 40, 77), (17, 1, 200), (1, 5, 1), (17, 0, 64)],
    ids=lambda size: str(size),
)
def test_every_form_and_shape(form, n, m, width):
    n = min(n, 3) if "one_token" in form else n  # a program for every token is slow here
    check(arguments(n, m, width, bias=True, input_norm=InputNorm.CONSTANT_NORM))


@pytest.mark.parametrize("n", [1, 3, 17, 66])
@pytest.mark.parametrize("m", [5, 40])
def test_the_tiling_of_the_shape(n, m):
    check(arguments(n, m, 77, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD))


@pytest.mark.parametrize("out_width", [None, 40, 100])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_residual_and_into(tile_form, residual, out_width):
    check(arguments(5, 20, 64, out_width, residual=residual, bias=True, scale_rule=OutputScale.NORM))


@pytest.mark.parametrize("keep_norm", [False, True], ids=["", "keep_norm"])
@pytest.mark.parametrize("alias", ["into", "x", "both", "residual"])
def test_out_may_be_an_input(form, alias, keep_norm):
    given = arguments(3, 40, 77, None if alias == "both" else 77, residual=True, keep_norm=keep_norm)
    want, into = expected(given), given["into"].clone()
    out = given["x" if alias == "both" else alias]
    steer_kernels.steer_out(*given.values(), out=out)
    assert edit_error(out, want, into) <= EDIT_ERROR


def test_strided_rows(tile_form):
    given = arguments(5, 20, 64, 40, residual=True, token_strength=True)
    want = expected(given)
    for name in ("x", "into", "residual", "encoder", "decoder"):
        wide = torch.full((given[name].shape[0], given[name].shape[1] + 9), torch.nan)
        wide[:, 3:-6] = given[name]
        given[name] = wide[:, 3:-6]
    given["token_strength"] = torch.stack([given["token_strength"], torch.full((5,), torch.nan)], 1)[:, 0]
    out = torch.full((5, 50), -7.0)
    steer_kernels.steer_out(*given.values(), out=out[:, 4:44])
    assert edit_error(out[:, 4:44], want, given["into"]) <= EDIT_ERROR
    assert (out[:, :4] == -7).all() and (out[:, 44:] == -7).all()


def test_columns_and_expanded_rows(tile_form):
    given = arguments(5, 20, 64, 40)
    given["x"] = given["x"].T.contiguous().T
    given["into"] = given["into"][:1].expand(5, 40)
    check(given)
    with pytest.raises(ValueError, match="unit stride"):
        steer_kernels.steer_out(*given.values(), out=torch.empty(40, 5).T)


@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
def test_fp16_loses_only_the_rounding_of_the_result(tile_form, input_norm):
    given = arguments(5, 20, 77, dtype=torch.float16, input_norm=input_norm, residual=True, scale_rule=OutputScale.RMS)
    out = steer_kernels.steer(*given.values())
    assert out.dtype == torch.float16
    assert rounding_excess(out, expected(given), given["into"]) <= EDIT_ERROR


def test_a_large_mean_does_not_hide_the_deviation(tile_form):
    """sum(x^2) - n mean^2 in fp32 would miss by some 5e-3 here."""
    given = arguments(5, 20, 77, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD)
    given["encoder"].zero_()  # else the products lose the digits, in any implementation
    given["x"] += 300.0
    check(given | {"into": torch.randn(5, 77, generator=torch.Generator().manual_seed(1))})


@pytest.mark.parametrize("scale_rule", OutputScale, ids=lambda rule: rule.name)
def test_no_rows_but_a_constant_part(tile_form, scale_rule):
    check(arguments(5, 0, 77, bias=True, scale_rule=scale_rule, residual=True))


def test_nothing_to_do(form):
    given = arguments(3, 0, 64)
    assert torch.equal(steer_kernels.steer(*given.values()), given["into"])
    assert steer_kernels.steer(*arguments(0, 5, 64).values()).shape == (0, 64)
    steer_kernels.steer_out(*arguments(0, 5, 64).values(), out=torch.empty(0, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("keep_norm", [False, True], ids=["", "keep_norm"])
@pytest.mark.parametrize("why", ["silent", "strength", "token_strength"])
def test_untouched_tokens_keep_their_bits(form, why, keep_norm, dtype):
    given = arguments(3, 20, 64, dtype=dtype, keep_norm=keep_norm, bias=why != "silent")
    given["into"][:, ::5] = -0.0
    given["into"][:, 1] = torch.finfo(dtype).smallest_normal / 4
    given["into"][:, 2] = torch.inf
    if why == "silent":
        given["rows"][:, Column.THRESHOLD] = torch.inf
        given["rows"][:, Column.GATE] = 1
    given["strength"] = 0.0 if why == "strength" else 1.0
    given["token_strength"] = torch.zeros(3) if why == "token_strength" else None
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    want = given["into"].clone().view(integers)
    assert torch.equal(steer_kernels.steer(*given.values()).view(integers), want)
    steer_kernels.steer_out(*given.values(), out=given["into"])
    assert torch.equal(given["into"].view(integers), want)


def test_a_broken_token_stays_alone(tile_form):
    given = arguments(5, 20, 77, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD)
    want = steer_kernels.steer(*given.values())
    given["x"][1] = torch.nan
    given["x"][3, 5] = torch.inf
    out = steer_kernels.steer(*given.values())
    assert torch.equal(out[[0, 2, 4]], want[[0, 2, 4]])


def test_same_input_same_bits(form):
    given = arguments(3, 40, 200, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD, keep_norm=True)
    first, second = (steer_kernels.steer(*given.values()) for _ in range(2))
    assert torch.equal(first, second)


def test_a_token_does_not_depend_on_its_neighbours(tile_form):
    given = arguments(17, 20, 64, input_norm=InputNorm.LAYER_NORM)
    whole = steer_kernels.steer(*given.values())
    part = given | {"x": given["x"][3:9], "into": given["into"][3:9]}
    torch.testing.assert_close(steer_kernels.steer(*part.values()), whole[3:9], rtol=1e-6, atol=1e-6)


@triton.jit
def weighted_rows_kernel(d_ptr, rows_ptr, out_ptr):
    d = tl.load(d_ptr + tl.arange(0, 16)[:, None] * 32 + tl.arange(0, 32)[None, :])
    rows = tl.load(rows_ptr + tl.arange(0, 32)[:, None] * 64 + tl.arange(0, 64)[None, :])
    tl.store(out_ptr + tl.arange(0, 16)[:, None] * 64 + tl.arange(0, 64)[None, :], rules.weighted_rows(d, rows))


def test_sixteen_bit_rows_do_not_round_the_edits():
    """fp16 stands for bf16, which the interpreter multiplies wrongly; the code is the same."""
    generator = torch.Generator().manual_seed(0)
    d, rows = torch.randn(16, 32, generator=generator), torch.randn(32, 64, generator=generator).half()
    out = torch.empty(16, 64)
    weighted_rows_kernel[(1,)](d, rows, out)
    want = d.double() @ rows.double()
    assert (out - want).norm() / want.norm() <= 1e-6
    assert (d.half().double() @ rows.double() - want).norm() / want.norm() > 1e-4


def demonstration_plan():
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(64, 40, generator=generator) / 8
    sae = ss.SAE(
        W_enc=W_enc, W_dec=W_enc.T.contiguous(), b_enc=torch.zeros(40), b_dec=torch.zeros(64), activation=ss.ReLU()
    )
    return sae.plan(ss.Edit.set({3: 8.0}) | ss.Edit.scale({17: 0.0}))


def test_the_op_is_registered_as_torch_wants_it():
    given = arguments(3, 5, 64, 40, residual=True, bias=True, token_strength=True)
    torch.library.opcheck(torch.ops.sparsesteer.steer.default, tuple(given.values()))
    torch.library.opcheck(torch.ops.sparsesteer.steer_out.default, tuple(given.values()), {"out": torch.empty(3, 40)})


def test_public_op_takes_these_kernels(monkeypatch):
    calls = []
    launched = steer_kernels.steer
    monkeypatch.setattr(steer_kernels, "steer", lambda *given: calls.append(1) or launched(*given))
    h = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    plan = demonstration_plan()
    with torch.inference_mode():
        steered = ss.ops.steer(h, plan)
    assert calls
    torch.testing.assert_close(steered, ss.ops.steer(h, plan, backend="reference"), rtol=1e-5, atol=1e-5)


def test_compiles_without_a_graph_break():
    plan = demonstration_plan()
    h = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(lambda h: 2 * ss.ops.steer(h + 1, plan, 0.5), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h), 2 * ss.ops.steer(h + 1, plan, 0.5), rtol=0, atol=0)
