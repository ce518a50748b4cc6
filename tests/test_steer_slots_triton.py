"""The Triton kernels of ``steer_slots`` against the reference in fp64."""

import pytest
import torch
from sae_cases import expected, slots_arguments
from steer_cases import edit_error, rounding_excess
from triton_device import DEVICE, HALVES, pytestmark  # noqa: F401

import sparsesteer as ss
from sparsesteer._layout import Column, InputNorm, OutputScale
from sparsesteer.kernels import steer_slots as slot_kernels
from sparsesteer.kernels.tiling_slots import SlotsTiling

EDIT_ERROR = 1e-5
# entries of each slot, every second with a bias: more than a block, none but a bias, nothing at all, some, one
SIZES = (20, 0, 0, 9, 1, 3)
MIXED = (3, -1, 0, 99, 1, 2, -7, 4, 0, 6, -1, -1, -1, -1, -1, -1, 5)  # 6, 99 and -7 are no slots
FEW = MIXED[:7]


def tiles(width, splits=1, chunk=1024, tokens=16, rows=16, groups=2):
    step = 32 if tokens > 1 else 64
    split_width = step * -(-width // (step * splits))
    splits = -(-width // split_width)
    return SlotsTiling(tokens, rows, step, groups, splits, split_width, 16, 64, chunk, 4)


FORMS = {
    "tiles": lambda n, entries, width, out_width: tiles(width),
    "split_tiles": lambda n, entries, width, out_width: tiles(width, 3, groups=1),
    "chunks": lambda n, entries, width, out_width: tiles(width, 2, 16),
    "tokens": lambda n, entries, width, out_width: tiles(width, 1, tokens=1, rows=16),
    "split_tokens": lambda n, entries, width, out_width: tiles(width, 2, tokens=1, rows=8, groups=1),
}


@pytest.fixture(params=FORMS)
def mixture(request, monkeypatch):
    """Slots for every form of the kernels: few tokens where each is a program of its own, which is slow here."""
    monkeypatch.setattr(slot_kernels, "slots_tiling", FORMS[request.param])
    return FEW if "tokens" in request.param else MIXED


@pytest.fixture(params=("tiles", "split_tokens"))
def one_of_each(request, monkeypatch):
    monkeypatch.setattr(slot_kernels, "slots_tiling", FORMS[request.param])


def arguments(n, width, slot=None, sizes=SIZES, **options):
    return slots_arguments(n, width, 24, sizes, slot, device=DEVICE, **options)


def check(given):
    out = slot_kernels.steer_slots(*given.values())
    assert out.dtype == given["into"].dtype
    assert edit_error(out, expected("steer_slots", given), given["into"]) <= EDIT_ERROR


@pytest.mark.parametrize("scale_rule", OutputScale, ids=lambda rule: rule.name)
@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
def test_every_rule(one_of_each, input_norm, scale_rule):
    keep_norm = (input_norm + scale_rule) % 2 == 1
    check(arguments(3, 77, [3, 1, -1], input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm))


@pytest.mark.parametrize("width", [1, 77])
def test_every_form(mixture, width):
    check(
        arguments(len(mixture), width, mixture, input_norm=InputNorm.CONSTANT_NORM, residual=True, token_strength=True)
    )


@pytest.mark.parametrize("n", [0, 1, 3, 65])
def test_the_tiling_of_the_shape(n):
    check(arguments(n, 20, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD))


def test_one_slot_for_all(one_of_each):
    check(arguments(5, 77, [0] * 5))


def test_a_row_shared_by_slots_and_twice_within_one(one_of_each):
    given = arguments(3, 77, [0, 3, 5])
    given["entry_row"][:] = 7
    check(given)


def test_another_width_is_written(one_of_each):
    given = arguments(4, 77, [0, 3, -1, 1])
    generator = torch.Generator().manual_seed(5)
    for name in ("into", "decoder", "slot_bias"):
        given[name] = torch.randn(len(given[name]), 40, generator=generator).to(DEVICE)
    check(given)


@pytest.mark.parametrize("alias", ["into", "x", "residual"])
def test_out_may_be_an_input(mixture, alias):
    given = arguments(len(mixture), 77, mixture, residual=True, keep_norm=alias == "into")
    want, into = expected("steer_slots", given), given["into"].clone()
    out = given[alias]
    slot_kernels.steer_slots_out(*given.values(), out=out)
    assert edit_error(out, want, into) <= EDIT_ERROR


def test_x_is_steered_in_place(one_of_each):
    given = arguments(7, 77, FEW)
    given["into"] = given["x"]
    want, into = expected("steer_slots", given), given["into"].clone()
    slot_kernels.steer_slots_out(*given.values(), out=given["x"])
    assert edit_error(given["x"], want, into) <= EDIT_ERROR


@pytest.mark.parametrize(("dtype", "keep_norm"), [(torch.float32, True), *((half, False) for half in HALVES)], ids=str)
def test_untouched_tokens_keep_their_bits(one_of_each, keep_norm, dtype):
    given = arguments(7, 77, FEW, dtype=dtype, keep_norm=keep_norm, scale_rule=OutputScale.STD)
    given["into"][:, ::5] = -0.0
    given["into"][:, 1] = torch.finfo(dtype).smallest_normal / 4
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    want = given["into"].clone().view(integers)
    untouched = torch.tensor([slot in (-1, 99, 2, -7, 6) for slot in FEW], device=DEVICE)
    out = slot_kernels.steer_slots(*given.values())
    assert torch.equal(out.view(integers)[untouched], want[untouched])
    assert not (out.view(integers)[~untouched] == want[~untouched]).all(-1).any()


def test_silent_slots_keep_their_bits(one_of_each):
    given = arguments(4, 77, [0, 3, 1, 5])
    given["rows"][:, Column.THRESHOLD], given["rows"][:, Column.GATE] = torch.inf, 1
    given["slots"][:, 2] = 0
    assert torch.equal(slot_kernels.steer_slots(*given.values()), given["into"])


def test_no_entries_at_all(one_of_each):
    given = arguments(5, 77, sizes=(0, 0), scale_rule=OutputScale.NORM)
    check(given)
    given["slots"][:, 2] = 0
    assert torch.equal(slot_kernels.steer_slots(*given.values()), given["into"])


def test_strided_rows(one_of_each):
    given = arguments(7, 64, residual=True, token_strength=True)
    want = expected("steer_slots", given)
    for name in ("x", "into", "residual", "encoder", "decoder", "slot_bias"):
        wide = torch.full((len(given[name]), 73), torch.nan, device=DEVICE)
        wide[:, 3:-6] = given[name]
        given[name] = wide[:, 3:-6]
    given["slot"] = given["slot"].repeat_interleave(2)[::2]
    out = torch.full((7, 74), -7.0, device=DEVICE)
    slot_kernels.steer_slots_out(*given.values(), out=out[:, 4:68])
    assert edit_error(out[:, 4:68], want, given["into"]) <= EDIT_ERROR
    assert (out[:, :4] == -7).all() and (out[:, 68:] == -7).all()
    with pytest.raises(ValueError, match="unit stride"):
        slot_kernels.steer_slots_out(*given.values(), out=torch.empty(64, 7, device=DEVICE).T)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_lose_only_the_rounding_of_the_result(one_of_each, dtype):
    given = arguments(
        4, 77, [3, 1, -1, 5], dtype=dtype, input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD, residual=True
    )
    out = slot_kernels.steer_slots(*given.values())
    assert out.dtype == dtype
    assert rounding_excess(out, expected("steer_slots", given), given["into"]) <= EDIT_ERROR


def test_a_broken_plan_or_token_stays_alone(one_of_each):
    given = arguments(4, 77, [0, 3, 3, 3])
    want = slot_kernels.steer_slots(*given.values())
    first = given["slots"][0, 0].item()
    given["encoder"] = torch.cat([given["encoder"], torch.full((1, 77), torch.nan, device=DEVICE)])
    given["decoder"] = torch.cat([given["decoder"], torch.full((1, 77), torch.inf, device=DEVICE)])
    given["entry_row"][first : first + 2] = 24
    given["x"][2] = torch.nan
    out = slot_kernels.steer_slots(*given.values())
    assert torch.equal(out[[1, 3]], want[[1, 3]])
    assert not torch.isfinite(out[0]).any()


def test_same_input_same_bits(one_of_each):
    given = arguments(3, 77, [3, 1, 0], input_norm=InputNorm.LAYER_NORM, scale_rule=OutputScale.STD, keep_norm=True)
    first, second = (slot_kernels.steer_slots(*given.values()) for _ in range(2))
    assert torch.equal(first, second)


def test_the_op_is_registered_as_torch_wants_it():
    given = arguments(2, 16, [1, 0], (1, 1), residual=True, token_strength=True)
    torch.library.opcheck(torch.ops.sparsesteer.steer_slots.default, tuple(given.values()))
    out = {"out": torch.empty(2, 16, device=DEVICE)}
    torch.library.opcheck(torch.ops.sparsesteer.steer_slots_out.default, tuple(given.values()), out)


def test_public_op_follows_the_bank(monkeypatch):
    calls = []
    launched = slot_kernels.steer_slots
    monkeypatch.setattr(slot_kernels, "steer_slots", lambda *given: calls.append(1) or launched(*given))
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(64, 40, generator=generator) / 8
    sae = ss.SAE(
        W_enc=W_enc, W_dec=W_enc.T.contiguous(), b_enc=torch.zeros(40), b_dec=torch.zeros(64), activation=ss.ReLU()
    ).to(DEVICE)
    bank = ss.Bank(sae, capacity=8, slots=3)
    plans = [sae.plan(ss.Edit.set({3: 8.0, 5: 1.0})), sae.plan(ss.Edit.scale({3: 0.0}) | ss.Edit.add({9: 2.0}))]
    slots = [bank.add(plan) for plan in plans]
    h = torch.randn(2, 3, 64, generator=generator).to(DEVICE)
    slot = torch.tensor([[slots[0], -1, slots[1]], [slots[1], slots[1], -1]], dtype=torch.int32, device=DEVICE)
    with torch.inference_mode():
        steered = ss.ops.steer_slots(h, bank, slot)
        assert calls
        for number, plan in zip(slots, plans, strict=True):
            want = ss.ops.steer(h, plan, backend="reference")
            torch.testing.assert_close(steered[slot == number], want[slot == number], rtol=1e-5, atol=1e-5)
        assert torch.equal(steered[slot == -1], h[slot == -1])
