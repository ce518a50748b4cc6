"""ss.Bank and ops.steer_slots as a user calls them: every token follows the plan of its own slot."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sae import D, F, every_activation, hidden, make_sae

import sparsesteer as ss
from sparsesteer import Bank, Edit, ops

SAE = make_sae()
EDITS = [
    Edit.set({3: 2.0, 50: 1.0}),
    Edit.scale({7: 0.0, 3: 3.0}) | Edit.add({9: 1.5}),  # shares feature 3, has a constant part
    Edit.add({11: 1.0}),  # nothing but a constant part
    Edit.cap({50: 0.1, 80: 0.2}) | Edit.floor({81: 0.4}),
]


def filled(sae=SAE, edits=EDITS, **options):
    """(bank, plans, their slots)"""
    plans = [sae.plan(edit) for edit in edits]
    bank = Bank(sae, **{"capacity": 16, "slots": 8} | options)
    return bank, plans, [bank.add(plan) for plan in plans]


def by_token(h, plans, slots, slot, **options):
    """``steer`` one token at a time, in fp64."""
    rows = []
    for i, s in enumerate(slot.tolist()):
        mine = {n: t[i : i + 1].double() if isinstance(t, torch.Tensor) else t for n, t in options.items()}
        target = mine.get("into", h[i : i + 1].double())
        rows.append(ops.steer(h[i : i + 1].double(), plans[slots.index(s)], **mine) if s in slots else target)
    return torch.cat(rows)


SLOT = torch.tensor([0, -1, 2, 1, 1, 3, 0, -1, 7, 3, 100], dtype=torch.int32)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_every_token_follows_its_own_plan(normalize):
    sae = make_sae(normalize=normalize)
    bank, plans, slots = filled(sae)
    h = hidden(len(SLOT))
    out = ops.steer_slots(h, bank, SLOT)
    torch.testing.assert_close(out.double(), by_token(h, plans, slots, SLOT), rtol=1e-5, atol=1e-5)
    for i in (1, 7, 8, 10):  # no slot, an empty one, one that the bank does not have
        assert torch.equal(out[i], h[i])


@pytest.mark.parametrize("kind", [k for k in every_activation() if k != "topk"])
def test_every_activation(kind):
    sae = make_sae(every_activation()[kind])
    bank, plans, slots = filled(sae)
    h = hidden(len(SLOT))
    want = by_token(h, plans, slots, SLOT)
    torch.testing.assert_close(ops.steer_slots(h, bank, SLOT).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_h(dtype):
    bank, plans, slots = filled()
    h = hidden(len(SLOT), dtype)
    out, eps = ops.steer_slots(h, bank, SLOT), torch.finfo(dtype).eps
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), by_token(h, plans, slots, SLOT), rtol=eps, atol=eps)


def test_strength_into_residual_and_shape():
    bank, plans, slots = filled()
    h, w, residual = hidden(11), hidden(11, seed=2), hidden(11, seed=3)
    strength = torch.arange(-5, 6) / 5
    out = ops.steer_slots(h, bank, SLOT, strength, into=w, residual=residual)
    want = by_token(h, plans, slots, SLOT, strength=strength, into=w, residual=residual)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(out[5], w[5])
    cube = ops.steer_slots(h[:10].view(2, 5, D), bank, SLOT[:10].view(2, 5), 0.5)
    want = by_token(h[:10], plans, slots, SLOT[:10], strength=0.5)
    torch.testing.assert_close(cube.view(10, D).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preserve_norm", [False, True])
def test_in_place(preserve_norm):
    sae_plans = [SAE.plan(edit, preserve_norm=preserve_norm) for edit in EDITS]
    bank = Bank(sae_plans[0], capacity=16, slots=8)
    for plan in sae_plans:
        bank.add(plan)
    h = hidden(11)
    want = ops.steer_slots(h, bank, SLOT)
    assert ops.steer_slots(h, bank, SLOT, out=h) is h
    assert torch.equal(h, want)


def test_tables_stay_where_they_are():
    bank, plans, slots = filled()
    tables = ("encoder", "decoder", "slots", "entry_row", "rows", "slot_bias")
    before = [getattr(bank, name).data_ptr() for name in tables]
    bank.remove(slots[1])
    bank.add(plans[1])
    assert [getattr(bank, name).data_ptr() for name in tables] == before


def test_plans_share_rows_and_give_them_back():
    bank, plans, slots = filled(capacity=7)  # features 3, 50, 7, 80, 81 take a row each
    h = hidden(8)
    assert len(bank) == 4 and "5 of 7 features" in repr(bank)
    bank.remove(slots[0])  # 3 and 50 are still edited by others
    assert "5 of 7" in repr(bank)
    bank.remove(slots[1])
    assert "3 of 7" in repr(bank)
    assert torch.equal(ops.steer_slots(h, bank, torch.full((8,), slots[0], dtype=torch.int32)), h)
    again = bank.add(SAE.plan(Edit.set({1: 1.0, 2: 2.0, 4: 3.0, 5: 4.0})))
    assert "7 of 7" in repr(bank)
    for slot, plan in ((again, SAE.plan(Edit.set({1: 1.0, 2: 2.0, 4: 3.0, 5: 4.0}))), (slots[3], plans[3])):
        out = ops.steer_slots(h, bank, torch.full((8,), slot, dtype=torch.int32))
        torch.testing.assert_close(out.double(), ops.steer(h.double(), plan), rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 6)), max_size=25), st.integers(0, 99))
def test_any_order_of_adding_and_removing(steps, seed):
    bank, held, h = Bank(SAE, capacity=20, slots=4, entries=24), {}, hidden(6, seed=seed)
    for add, start, size in steps:
        if add:
            plan = SAE.plan(Edit.set({start + i: 1.0 + i for i in range(size)}))
            try:
                held[bank.add(plan)] = plan
            except RuntimeError:
                continue
        elif held:
            slot = sorted(held)[start % len(held)]
            bank.remove(slot)
            del held[slot]
    slot = torch.tensor([-1, 0, 1, 2, 3, 0], dtype=torch.int32)
    want = by_token(h, list(held.values()), list(held), slot)
    torch.testing.assert_close(ops.steer_slots(h, bank, slot).double(), want, rtol=1e-5, atol=1e-5)


def test_a_full_bank_says_so_and_stays_as_it_was():
    h, edit = hidden(4), Edit.set({1: 1.0, 2: 2.0})
    bank = Bank(SAE, capacity=3, slots=2, entries=5)
    slot = torch.full((4,), bank.add(SAE.plan(edit)), dtype=torch.int32)
    want = ops.steer_slots(h, bank, slot)
    with pytest.raises(RuntimeError, match="2 more features do not fit, 1 of 3 rows are free"):
        bank.add(SAE.plan(Edit.set({1: 0.0, 8: 1.0, 9: 1.0})))
    small = Bank(SAE, capacity=9, slots=2, entries=3)
    small.add(SAE.plan(edit))
    with pytest.raises(RuntimeError, match="no run of 2 entries is free among 3"):
        small.add(SAE.plan(edit))
    bank.add(SAE.plan(edit))
    with pytest.raises(RuntimeError, match="all 2 slots are taken; remove a plan"):
        bank.add(SAE.plan(edit))
    assert torch.equal(ops.steer_slots(h, bank, slot), want)


def test_plans_that_do_not_fit():
    bank = Bank(SAE, capacity=9, slots=2)
    topk = make_sae(ss.TopK(7))
    with pytest.raises(ValueError, match=r"need their whole SAE .* activation=ss.ReLU\(\)"):
        bank.add(topk.plan(Edit.scale({1: 2.0})))
    with pytest.raises(ValueError, match="the plan's preserve_norm is True, the bank's False"):
        bank.add(SAE.plan(Edit.set({1: 1.0}), preserve_norm=True))
    with pytest.raises(ValueError, match="the plan's sae_digest is"):
        bank.add(topk.plan(Edit.set({1: 1.0}), activation=ss.ReLU()))
    with pytest.raises(ValueError, match="the plan's encoder is .* of torch.float64"):
        bank.add(SAE.plan(Edit.set({1: 1.0})).to(dtype=torch.float64))
    with pytest.raises(ValueError, match="slots should be a positive integer, got 0"):
        Bank(SAE, capacity=9, slots=0)
    with pytest.raises(KeyError, match="slot 1 holds no plan"):
        bank.remove(1)


BAD = [
    (
        lambda h, b, s: ops.steer_slots(h, b, s.long()),
        TypeError,
        r"slot should be int32, got torch.int64; .* slot.int\(\)",
    ),
    (lambda h, b, s: ops.steer_slots(h, b, s[:3]), ValueError, r"slot should have shape \[11\], one per token"),
    (lambda h, b, s: ops.steer_slots(h[:, :9], b, s), ValueError, "the width of the bank"),
    (lambda h, b, s: ops.steer_slots(h.double(), b, s), TypeError, "the bank's tables are torch.float32"),
    (lambda h, b, s: ops.steer_slots(h, b, s, float("inf")), ValueError, "strength should be finite, got inf"),
    (lambda h, b, s: ops.steer_slots(h, b, s, out=h[1:]), ValueError, r"out should have shape \[11, 48\]"),
]


@pytest.mark.parametrize("call, error, message", BAD, ids=[b[2][:40] for b in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(hidden(11), filled()[0], SLOT)


def test_in_place_under_autograd():
    bank, h = filled()[0], hidden(11).requires_grad_()
    with pytest.raises(RuntimeError, match="steer_slots: out= and in-place steering cannot be recorded"):
        ops.steer_slots(h, bank, SLOT, out=torch.empty_like(h))


def test_features_beyond_the_plans_are_left_alone():
    bank, plans, slots = filled(capacity=F)
    assert bank.encoder[5:].abs().sum() == 0 and len(bank.encoder) == F


def test_a_plan_goes_into_the_slot_that_is_named():
    sae = make_sae()
    bank = ss.Bank(sae, capacity=8, slots=4)
    assert bank.add(sae.plan(ss.Edit.set({3: 1.0})), 2) == 2
    with pytest.raises(ValueError, match="slot 2 is not an empty one of 4"):
        bank.add(sae.plan(ss.Edit.set({4: 1.0})), 2)
    with pytest.raises(ValueError, match="slot 4 is not an empty one of 4"):
        bank.add(sae.plan(ss.Edit.set({4: 1.0})), 4)
    assert bank.add(sae.plan(ss.Edit.set({4: 1.0}))) == 0


def test_rows_of_a_feature_that_differ_from_the_banks_are_refused():
    sae = make_sae()
    bank = ss.Bank(sae, capacity=8, slots=4)
    bank.add(sae.plan(ss.Edit.set({3: 1.0})))
    changed = sae.plan(ss.Edit.set({2: 1.0, 3: 2.0}))
    changed.decoder[1, 0] += 1
    with pytest.raises(ValueError, match="rows of feature 3 are not those that the bank holds"):
        bank.add(changed)
    assert len(bank) == 1
