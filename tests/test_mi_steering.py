"""MISteering: its three rules equal their formulas, TopK's mask is left out, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from small_sae import F, hidden, make_sae

import sparsesteer as ss
from sparsesteer.methods.mi.steering import selected
from sparsesteer.serving.steered_block import BankReader

pytestmark = pytest.mark.usefixtures("one_thread")
FEATURES = [3, 17, 90]


def parts(sae, x):
    """(f [N, M] without a mask, W [M, D]) in fp64."""
    z = (x.double() - sae.b_dec.double()) @ sae.W_enc.double()[:, FEATURES] + sae.b_enc.double()[FEATURES]
    return z.relu(), sae.W_dec.double()[FEATURES]


def formula(rule, x, f, W, a):
    x = x.double()
    if rule == "amplify":
        return x + a * f @ W
    if rule == "calibrate":
        return x - f @ W + a * W.mean(0)
    g = (a - f).relu()
    moved = x + a * (g / g.sum(-1, keepdim=True)).nan_to_num() @ W
    return moved * x.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("activation", [ss.ReLU(), ss.TopK(2)], ids=["relu", "topk"])
@pytest.mark.parametrize("rule, amount", [("amplify", 2.0), ("amplify", -1.0), ("calibrate", 4.0), ("gap_fill", 2.5)])
def test_rules_are_their_formulas(rule, amount, activation):
    sae, x = make_sae(activation), hidden(50)
    plan = ss.MISteering(sae, FEATURES).plan(rule, amount)
    assert plan.k == 0 and plan.features.tolist() == FEATURES
    wanted = formula(rule, x, *parts(sae, x), amount)
    got = ss.ops.steer(x, plan).double()
    assert (got - wanted).norm() / (wanted - x.double()).norm() < 1e-5


def test_gap_fill_without_a_gap_changes_nothing():
    """All activations reach the amount: 0/0 in the released code."""
    sae = make_sae(ss.ReLU())
    x = hidden(200) + 40 * sae.W_enc[:, FEATURES].sum(1)
    f, _ = parts(sae, x)
    full = (f >= 0.5).all(-1)
    assert full.any()
    got = ss.ops.steer(x, ss.MISteering(sae, FEATURES).plan("gap_fill", 0.5))
    assert torch.equal(got[full], x[full]) and got.isfinite().all()


def test_gap_fill_keeps_the_length():
    sae, x = make_sae(ss.TopK(5)), hidden(30)
    got = ss.ops.steer(x, ss.MISteering(sae, FEATURES).plan("gap_fill", 2.5))
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1))
    assert not torch.equal(got, x)


@pytest.mark.parametrize("rule", ["amplify", "calibrate", "gap_fill"])
def test_plans_are_saved_and_held_in_a_bank(rule, tmp_path):
    sae, x = make_sae(ss.TopK(2)), hidden(12)
    plan = ss.MISteering(sae, FEATURES).plan(rule, 1.5)
    again = ss.SteeringPlan.load(plan.save(tmp_path / "plan.safetensors"))
    assert again.gap == (1.5 if rule == "gap_fill" else 0.0) and again.preserve_norm == (rule == "gap_fill")
    assert torch.equal(ss.ops.steer(x, again), ss.ops.steer(x, plan))
    bank = ss.Bank(plan, capacity=8, slots=2)
    slot = torch.full((12,), bank.add(again), dtype=torch.int32)
    torch.testing.assert_close(ss.ops.steer_slots(x, bank, slot), ss.ops.steer(x, plan))


def explained(notes):
    made = ss.Explanations.of([[("harm", 2.0), (f"w{i}", 1.0)] for i in range(F)], method="m", method_version="1")
    return made.with_notes([notes.get(i, {}) for i in range(F)])


def test_labelled_features_with_a_yes_are_selected():
    notes = {
        3: {"label": "refusal", "verdict": "yes"},
        5: {"label": "refusal", "verdict": "no"},
        7: {"label": None, "verdict": "yes"},
        9: {"label": "privacy", "verdict": "yes"},
    }
    found = explained(notes)
    assert selected(found) == [3, 9] and selected(found, "privacy") == [9]
    assert ss.MISteering.labelled(make_sae(), found).features == [3, 9]
    with pytest.raises(ValueError, match="no features were given; was none selected"):
        ss.MISteering.labelled(make_sae(), found, "music")
    with pytest.raises(ValueError, match="have no labels"):
        selected(ss.Explanations.of([[]], method="m", method_version="1"))


def test_features_by_name():
    sae = make_sae()
    sae.explanations = explained({})
    assert ss.MISteering(sae, ["w4", 7]).features == [4, 7]
    with pytest.raises(ValueError, match="named twice"):
        ss.MISteering(sae, ["w4", 4])


def wrong(**given):
    arguments = {"sae": make_sae(), "features": FEATURES, "rule": "amplify", "amount": 1.0} | given
    ss.MISteering(arguments["sae"], arguments["features"]).plan(arguments["rule"], arguments["amount"])


WRONG = [
    ({"features": []}, ValueError, "no features were given"),
    ({"features": "12"}, TypeError, "takes a list of features, got str"),
    ({"features": [F]}, ValueError, f"feature {F} is out of range"),
    ({"features": [-1]}, ValueError, "counted from 0, got -1"),
    ({"features": [True]}, TypeError, "a whole number or a name, got True"),
    ({"sae": None}, TypeError, "sae should be an SAE, got NoneType"),
    ({"rule": "defend"}, ValueError, "one of amplify, calibrate, gap_fill, got 'defend'"),
    ({"amount": float("inf")}, ValueError, "the amount should be a finite number, got inf"),
    ({"rule": "gap_fill", "amount": 0}, ValueError, "an amount above 0, got 0"),
    ({"sae": make_sae(normalize="layer_norm"), "rule": "gap_fill"}, ValueError, "gap needs the one scale"),
]


@pytest.mark.parametrize("given, kind, message", WRONG)
def test_what_is_refused(given, kind, message):
    with pytest.raises(kind, match=message):
        wrong(**given)


def test_a_gap_needs_encoded_edits():
    sae = make_sae()
    for edit, options in ((ss.Edit.add({3: 1.0}), {}), (ss.Edit.floor({3: 1.0}), {"reconstruct": True})):
        with pytest.raises(ValueError, match="gap is shared out among encoded features"):
            sae.plan(edit, gap=1.0, **options)
    with pytest.raises(ValueError, match="gap should be a finite number, got 'much'"):
        sae.plan(ss.Edit.floor({3: 1.0}), gap="much")


def test_a_server_keeps_the_length_of_the_stream():
    """vLLM's blocks return it in two parts, of which one is written."""
    sae, h, residual = make_sae(ss.TopK(5)), hidden(12), hidden(12, seed=2)
    plan = ss.MISteering(sae, FEATURES).plan("gap_fill", 2.5)
    bank = ss.Bank(plan, capacity=8, slots=2)
    slot = torch.tensor([bank.add(plan), -1] * 6, dtype=torch.int32)
    tokens = SimpleNamespace(slot=slot, strength=torch.ones(12))
    written = BankReader(bank, tokens)(h, residual)
    torch.testing.assert_close((written + residual)[::2], ss.ops.steer(h + residual, plan)[::2])
    assert torch.equal(written[1::2], h[1::2])
