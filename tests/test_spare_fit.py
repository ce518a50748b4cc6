"""SPARE.fit on a tiny model: statistics recomputed by hand, errors."""

import fit_cases
import pytest
import torch
from conflict_models import N_FEATURES, WIDTH, model, sae
from fit_cases import LAYERS, by_hand, fit

import sparsesteer as ss
from sparsesteer.methods.spare import measuring
from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY, Conflict

world = fit_cases.world
pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def test_statistics_are_those_of_prompts_answered_one_by_one(world):
    labels, states = by_hand(world)
    assert labels.sum() >= 6 and (1 - labels).sum() >= 6
    spare = fit(world, batch_size=1)
    assert spare.about["answers"] == {
        "context": int(labels.sum()), "memory": int((1 - labels).sum()), "neither": 26 - len(labels)
    }  # fmt: skip
    for layer in LAYERS:
        each = sae(layer)
        z = torch.relu((states[layer] - each.b_dec) @ each.W_enc + each.b_enc)  # without TopK's mask
        found = spare.statistics[layer]
        torch.testing.assert_close(found.mean_context, z[labels == 1].mean(0))
        torch.testing.assert_close(found.mean_memory, z[labels == 0].mean(0))
        torch.testing.assert_close(found.mean_difference, z[labels == 1].mean(0) - z[labels == 0].mean(0))
        want = ss.mutual_information(z, labels)
        assert (found.mi - want).abs().max() < 1e-6 and want.max() > 0.05


def test_prompts_answered_together_give_the_same_states(world):
    alone, together = fit(world, batch_size=1), fit(world, batch_size=5)
    assert alone.about == together.about
    for layer in LAYERS:
        torch.testing.assert_close(
            together.statistics[layer].mean_context, alone.statistics[layer].mean_context, rtol=1e-4, atol=1e-5
        )


def test_features_are_encoded_a_band_at_a_time(world, monkeypatch):
    whole = fit(world)
    widths, codes_of = [], measuring.codes_of

    def watched(each, x, first, end):
        widths.append(end - first)
        return codes_of(each, x, first, end)

    monkeypatch.setattr(measuring, "codes_of", watched)
    monkeypatch.setattr(measuring, "BLOCK", 32)
    monkeypatch.setattr(measuring, "BAND_BYTES", 1)
    banded = fit(world)
    assert widths == 2 * [32, 32, 32]
    torch.testing.assert_close(banded.statistics[0].mean_context, whole.statistics[0].mean_context)
    assert not torch.equal(banded.statistics[0].mi, whole.statistics[0].mi)  # other noise for blocks of 32
    labels, states = by_hand(world)
    z = codes_of(sae(0), states[0], 0, N_FEATURES)
    want = ss.mutual_information(z, labels, block=32)
    alone = fit(world, batch_size=1)
    torch.testing.assert_close(alone.statistics[0].mi, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [ss.ReLU(), ss.JumpReLU(0.3)], ids=lambda each: type(each).__name__)
def test_other_saes_keep_their_activation(world, kind):
    spare = fit(world, {0: sae(0, kind)}, batch_size=1)
    labels, states = by_hand(world)
    z = sae(0, kind).encode(states[0])
    torch.testing.assert_close(spare.statistics[0].mean_memory, z[labels == 0].mean(0))


def test_plans_steer_the_model(world):
    the_model, the_tokenizer, examples = world
    spare = fit(world)
    ids = the_tokenizer(Conflict.of(examples[0], 0).prompt, return_tensors="pt").input_ids
    with torch.no_grad(), ss.steer(the_model, spare.plan("context"), positions="last_prompt"):
        steered = the_model(ids).logits
    with torch.no_grad():
        plain = the_model(ids).logits
    torch.testing.assert_close(steered[:, :-1], plain[:, :-1])
    assert (steered - plain)[:, -1].norm() > 0.1


def test_one_sae_knows_its_site_and_gives_one_plan(world, tmp_path):
    alone = sae(0, site="blocks.0.hook_resid_post")
    spare = fit(world, alone)
    assert isinstance(spare.plan(), ss.SteeringPlan) and isinstance(spare.features("context"), list)
    assert spare.features("memory") == fit(world, {0: alone}).features("memory")[0]
    assert spare.features("memory") == fit(world, [alone]).features("memory")["blocks.0.hook_resid_post"]
    assert spare.features("memory") == fit(world, alone, layers=[0]).features("memory")[0]
    again = ss.SPARE.load(spare.save(tmp_path / "spare.safetensors"), alone)
    assert again.features("memory") == spare.features("memory") and again.about == spare.about


def test_some_of_the_layers(world):
    spare = fit(world, layers=[2])
    assert list(spare.plan()) == [2]
    assert spare.features("context")[2] == fit(world, [sae(0), sae(2)], layers=[0, 2]).features("context")[2]


def test_confident_answers_count_more(world):
    the_model, the_tokenizer, examples = world
    spare = fit(world, means="confidence", batch_size=1)
    labels, states = by_hand(world)
    kept = [e for i, e in enumerate(examples) if Conflict.of(e, i).source_of("") == -1 and i % 3 < 2]
    kept = [e for e in kept if not ("not given" in e["sub_answer"] and "nor this" in e["org_answer"])]
    ratios = []
    for example, label in zip(kept, labels.tolist(), strict=True):
        losses = []
        for answers in (example["sub_answer"], example["org_answer"]):
            text = Conflict.of(example, 0).prompt + f" {answers if isinstance(answers, str) else answers[0]}\n\n"
            ids = the_tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                losses.append(the_model(ids, labels=ids).loss.double())
        ratios.append(losses[label] / sum(losses))  # of context, label 1: that of the original answer
    weights = torch.stack(ratios)
    z = measuring.codes_of(sae(0), states[0], 0, N_FEATURES).double()
    for side, found in ((CONTEXT, spare.statistics[0].mean_context), (MEMORY, spare.statistics[0].mean_memory)):
        own = weights * (labels == side)
        torch.testing.assert_close(found.double(), (own / own.sum()) @ z, rtol=1e-5, atol=1e-6)
    assert not torch.equal(spare.statistics[0].mean_context, fit(world).statistics[0].mean_context)


def of_kind(world, *kinds):
    return [example for i, example in enumerate(world[2]) if i % 3 in kinds]


def nan_sae():
    broken = sae(0)
    broken.b_enc[7] = torch.nan  # weights are checked when an SAE is made, and can be written to later
    return broken


def nan_model():
    broken = model()
    broken.model.layers[1].mlp.down_proj.weight.data[:] = torch.nan
    return broken


WRONG = {
    "one kind": (lambda w: fit(w, examples=of_kind(w, 0, 2)), ValueError, "both kinds are needed: . answers came from "
                 "the context, 0 from memory"),
    "too few": (lambda w: fit(w, examples=of_kind(w, 0)[:9] + of_kind(w, 1)[:2]), ValueError, "too few answers: .* 2 "
                "from memory, .*; 4 of each kind are the least"),
    "no examples": (lambda w: fit(w, examples=[]), ValueError, "there are no examples"),
    "bad example": (lambda w: fit(w, examples=[*w[2], {}]), ValueError, "example 26: question should be text"),
    "no SAE of a layer": (lambda w: fit(w, layers=[0, 1]), ValueError, "no SAE for 1; there are SAEs for 0, 2"),
    "no layer": (lambda w: fit(w, layers=[]), ValueError, "no layer was given"),
    "model lacks it": (lambda w: fit(w, {9: sae()}), ValueError, "SPARE: there is no block 9; it has blocks 0 to 2"),
    "no site": (lambda w: fit(w, sae()), ValueError, r"SPARE: the SAE knows no site; name one: SPARE.fit"),
    "no sites": (lambda w: fit(w, [sae(), sae()]), ValueError, "do not all know sites of their own"),
    "not as many": (lambda w: fit(w, [sae(), sae()], layers=[1]), ValueError, "1 layers were given for 2 SAEs"),
    "no SAE": (lambda w: fit(w, {0: "sae"}), TypeError, "the SAE for 0 should be an SAE, got str"),
    "a path": (lambda w: fit(w, "folder"), TypeError, "saes should be an SAE, SAEs or {site: SAE}, got str"),
    "other width": (lambda w: fit(w, {0: ss.SAE(W_enc=torch.eye(8), W_dec=torch.eye(8), activation=ss.ReLU())}),
                    ValueError, f"the SAE has width 8, the model has width {WIDTH}"),
    "means": (lambda w: fit(w, means="median"), ValueError, "means should be one of plain, confidence"),
    "estimator": (lambda w: fit(w, estimator="mine"), ValueError, "estimator one of knn, histogram"),
    "batch_size": (lambda w: fit(w, batch_size=0), ValueError, "batch_size should be a positive whole number, got 0"),
    "k": (lambda w: fit(w, k=None), ValueError, "give k, how many features"),
    "training": (lambda w: fit((model().train(), *w[1:])), ValueError, "in training mode"),
    "no generation": (lambda w: fit((model().model, *w[1:])), TypeError, "one of transformers that generates"),
    "un-fit": (lambda w: ss.SPARE({0: sae()}, {}, fit(w).selection), ValueError, r"statistics are needed .* SPARE.fit, "
               "from_statistics and load make"),
    "NaN states": (lambda w: fit((nan_model(), *w[1:])), ValueError, "states at model.layers.2 have NaN .*example 0"),
    "NaN codes": (lambda w: fit(w, {0: nan_sae()}), ValueError, "codes of feature 7 are NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told(world, call, error, message):
    with pytest.raises(error, match=message):
        call(world)
