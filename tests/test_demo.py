"""The demonstration's parts on a tiny model; the real demonstration is too long for the suite."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_demo_rules import heard
from tiny_model import N_FEATURES, WIDTH, WORDS, write_model, write_sae
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sparsesteer import Edit, hooks, ops
from sparsesteer.cli import app
from sparsesteer.demo import choose, compare, speed, strength_plot
from sparsesteer.demo.block_hook import transformed
from sparsesteer.demo.setting import Setting
from sparsesteer.logit_lens import direction_logits, promoted_tokens, word_tokens, words_of, written_words

LENIENT = choose.Rule(
    least_specificity=-1.0, most_surprise=math.inf, most_repetition=1.0, strengths=(2.0, 8.0), new_tokens=8
)


def untracked(items, description):
    return items


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_model(folder / "model")
    write_sae(folder / "sae")
    return folder


@pytest.fixture(scope="module")
def setting(folders):
    model = AutoModelForCausalLM.from_pretrained(folders / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folders / "model")
    return Setting.load(model, tokenizer, folders / "sae", "seven ships wait", new_tokens=8)


def test_the_setting_holds_the_models_own_answer(setting):
    ids = setting.model.generate(setting.prompt_ids, max_new_tokens=8, do_sample=False, pad_token_id=1)
    assert setting.whole_ids.tolist() == ids.tolist()
    assert setting.block is setting.model.model.layers[1]


def test_an_sae_without_statistics_is_refused(setting, tmp_path):
    write_sae(tmp_path, statistics=False)
    with pytest.raises(FileNotFoundError, match="feature_statistics"):
        Setting.load(setting.model, setting.tokenizer, tmp_path, "seven", new_tokens=2)


def test_promoted_tokens_are_those_of_the_logit_lens(setting):
    directions = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    norm = setting.model.model.norm.weight.double()
    normed = directions.double() / directions.double().square().mean(-1, keepdim=True).sqrt() * norm
    expected = normed @ setting.model.lm_head.weight.double().T
    torch.testing.assert_close(direction_logits(setting.model, directions).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(promoted_tokens(setting.model, directions, 4), expected.topk(4).indices)
    among = torch.tensor([5, 9, 7])
    best = among[expected[:, among].argmax(-1)]
    torch.testing.assert_close(promoted_tokens(setting.model, directions, 1, among)[:, 0], best)


def test_word_tokens_are_whole_words(setting):
    ids = word_tokens(setting.tokenizer, shortest=5)
    assert words_of(setting.tokenizer, ids) == [word for word in WORDS if len(word) >= 5]


def test_written_words_have_the_shorter_rows(setting):
    kept = set(written_words(setting.model, setting.tokenizer).tolist())
    every = word_tokens(setting.tokenizer).tolist()
    length = setting.model.lm_head.weight.norm(dim=-1)
    assert len(kept) == math.ceil(len(every) / 2)
    assert max(length[i] for i in kept) <= min(length[i] for i in set(every) - kept)


@pytest.fixture
def topics(monkeypatch):
    texts = {"birds": "one bird sings over there", "sailing": "cold river seven ships", "night": "under stars there"}
    monkeypatch.setattr(choose, "TOPICS", texts)
    return texts


def test_candidates_are_the_most_specific_features_of_the_right_density(setting, topics):
    rule = replace(LENIENT, least_density=0.01, most_density=0.04)
    shares = {}
    for topic, text in topics.items():
        ids = setting.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = setting.model(ids, output_hidden_states=True).hidden_states[2]
        shares[topic] = (setting.sae.encode(hidden)[0, 1:] / setting.maximum).mean(0)
    expected = {}
    for topic in topics:
        others = sum(shares[other] for other in topics if other != topic) / 2
        specificity = {
            feature: float((shares[topic] - others)[feature])
            for feature in range(N_FEATURES)
            if 0.01 <= setting.density[feature] <= 0.04
        }
        feature = max(specificity, key=specificity.__getitem__)
        expected.setdefault(feature, (topic, specificity[feature]))
    found = {c.feature: (c.topic, pytest.approx(c.specificity, abs=1e-5)) for c in choose.candidates(setting, rule)}
    assert found == expected
    least = sorted(specificity for _, specificity in expected.values())[-1]
    assert [c.specificity for c in choose.candidates(setting, replace(rule, least_specificity=least - 1e-4))] == [
        pytest.approx(least, abs=1e-5)
    ]


def test_no_feature_of_the_density_is_an_error(setting):
    with pytest.raises(ValueError, match="density"):
        choose.candidates(setting, replace(LENIENT, least_density=0.9, most_density=1.0))


def test_a_row_of_the_batch_is_steered_by_its_edit_alone(setting, topics):
    candidates = choose.candidates(setting, LENIENT)
    assert len(candidates) > 1
    auditions = choose.audition(setting, candidates, LENIENT, untracked)
    assert [a.candidate for a in auditions] == 2 * candidates
    assert len({a.answer for a in auditions}) > 2
    own_loss, own_codes = choose.read_back(setting, setting.own_ids)
    for a in auditions:
        with hooks.steer(setting.model, setting.sae.plan(a.edit), positions="generated"):
            [ids] = setting.answers(1, LENIENT.new_tokens)
        assert setting.text(ids) == a.answer
        loss, codes = choose.read_back(setting, ids)
        feature = a.candidate.feature
        share = (codes[:, feature] > 0).float().mean() - (own_codes[:, feature] > 0).float().mean()
        assert a.landed == pytest.approx(share.item())
        assert a.surprise == pytest.approx(loss - own_loss, abs=1e-5)


def test_reading_back_is_the_loss_of_the_answer(setting):
    labels = setting.whole_ids.clone()
    labels[:, : setting.prompt_ids.shape[1]] = -100
    with torch.no_grad():
        expected = setting.model(setting.whole_ids, labels=labels).loss.item()
    loss, codes = choose.read_back(setting, setting.own_ids)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert codes.shape == (len(setting.own_ids), N_FEATURES)


def test_the_control_changes_as_much_in_another_direction(setting):
    plan = setting.sae.plan(Edit.set({3: 5.0}))
    other = compare.control_plan(plan, setting.sae.whole_decoder()[0][7])
    h = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    by_plan, by_other = ops.steer(h, plan) - h, ops.steer(h, other) - h
    torch.testing.assert_close(by_plan.norm(dim=-1), by_other.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(by_other, setting.sae.whole_decoder()[0][7][None]).abs()
    torch.testing.assert_close(cosine, torch.ones(6))


def test_comparison_puts_three_texts_beside_each_other(setting):
    result = compare.compare(setting, heard(3, 0.5, value=40.0), 9)
    with hooks.steer(setting.model, setting.sae.plan(Edit.set({3: 40.0})), positions="generated"):
        steered = setting.text(setting.answers(1, 8)[0])
    assert (result.unsteered, result.steered, result.control_feature) == (setting.own_text, steered, 9)
    assert len({result.unsteered, result.steered, result.control}) == 3


def test_all_competitors_do_the_same(setting, folders):
    pytest.importorskip("sae_lens")
    features = torch.tensor([3, 8, 21])
    plan = setting.sae.plan(Edit.scale(dict.fromkeys(features.tolist(), speed.FACTOR)))
    h = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0)) * 3
    truth = ops.steer(h.double(), plan) - h.double()
    assert truth.norm() > 1
    for other in (speed.gathered_torch(plan), speed.saelens_class(folders / "sae", features, "cpu")):
        with torch.no_grad():
            change = other(h).double() - h.double()
        assert (change - truth).norm() / truth.norm() < 1e-5


def test_a_block_hook_is_removed(setting):
    def logits():
        with torch.no_grad():
            return setting.model(setting.prompt_ids).logits

    before = logits()
    with transformed(setting.block, lambda h: h * 0):
        assert not torch.equal(logits(), before)
    assert torch.equal(logits(), before)


def test_speed_has_a_row_for_every_way(setting):
    result = speed.measure(setting, n_features=5, n_tokens=4, rounds=3, track=untracked)
    names = [row.name for row in result.rows]
    assert names[:3] == ["unsteered", "sparsesteer", "gathered torch"]
    assert result.rows[0].ratio == result.rows[0].ratio_low == result.rows[0].ratio_high == 1.0
    assert all(row.ratio_low <= row.ratio <= row.ratio_high and row.difference < 1e-3 for row in result.rows)


def test_a_disagreement_shows_no_speed(setting, monkeypatch):
    monkeypatch.setattr(speed, "gathered_torch", lambda plan: lambda h: h + 1.0)
    result = speed.measure(setting, n_features=5, n_tokens=4, rounds=3, track=untracked)
    assert result.rows == () and "disagree" in result.notes[-1]


def test_the_strength_curve_is_that_of_a_hook_by_hand(setting):
    plan, ids, start = setting.sae.plan(Edit.add({3: 4.0})), setting.whole_ids, setting.prompt_ids.shape[1]
    promoted = torch.tensor([4, 6])
    curve = strength_plot.strength_curve(setting.model, plan, "label", ids, start, promoted)
    assert curve.divergence[0] == pytest.approx(0, abs=1e-6)
    row = setting.sae.whole_decoder()[0][3]

    def by_hand(h, strength):
        h = h.clone()
        h[:, start:] += strength * 4.0 * row
        return h

    def log_p(strength):
        with transformed(setting.block, lambda h: by_hand(h, strength)), torch.no_grad():
            return setting.model(ids).logits[0, start:].double().log_softmax(-1)

    for i in (4, 16):
        steered, unsteered = log_p(strength_plot.STRENGTHS[i]), log_p(0.0)
        mass = steered[:, promoted].exp().sum(-1).mean()
        divergence = (steered.exp() * (steered - unsteered)).sum(-1).mean()
        assert curve.raised_mass[i] == pytest.approx(mass.item(), rel=1e-4)
        assert curve.divergence[i] == pytest.approx(divergence.item(), rel=1e-3)


def test_the_picture_is_a_png_and_alone(tmp_path):
    pytest.importorskip("matplotlib")
    ramp = tuple(range(len(strength_plot.STRENGTHS)))
    strength_plot.draw([strength_plot.StrengthCurve("a", ramp, ramp)], tmp_path / "new" / "strength.png")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["strength.png"]
    assert (tmp_path / "new" / "strength.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_picture_is_left_out(setting, monkeypatch, tmp_path):
    monkeypatch.setattr(strength_plot.util, "find_spec", lambda name: None)
    assert "pip install matplotlib" in strength_plot.plot(setting, [], tmp_path, untracked)


def test_raised_words_are_those_that_gain_most(setting):
    plan, start = setting.sae.plan(Edit.add({3: 4.0})), setting.prompt_ids.shape[1]
    row = setting.sae.whole_decoder()[0][3]

    def probabilities(change):
        def add(h):
            h = h.clone()
            h[:, start:] += change
            return h

        with transformed(setting.block, add), torch.no_grad():
            return setting.model(setting.whole_ids).logits[0, start:].softmax(-1).mean(0)

    words = word_tokens(setting.tokenizer)
    expected = words[(probabilities(4.0 * row) - probabilities(0.0))[words].topk(3).indices]
    got = strength_plot.raised_words(setting.model, plan, setting.whole_ids, start, words, 3)
    assert got.tolist() == expected.tolist()


def test_the_command_runs_to_the_end(folders, tmp_path, monkeypatch, topics):
    monkeypatch.setattr("sparsesteer.cli.demo.Rule", lambda: LENIENT)
    monkeypatch.setattr("sparsesteer.cli.demo.SPEED_TOKENS", 3)
    arguments = ["demo", "--model", folders / "model", "--sae", folders / "sae", "--rounds", 3, "--output", tmp_path]
    arguments += ["--prompt", "seven ships wait", "--json"]
    run = CliRunner().invoke(app, [str(a) for a in arguments])
    assert run.exit_code == 0, run.output
    for part in ("Rule:", "unsteered", "equal norm", "tokens/s", "strength.png"):
        assert part in run.stderr.replace("\n", ""), part
    result = json.loads(run.stdout)
    assert {"rule", "chosen", "comparisons", "speed", "strength"} == set(result)
    assert all(c["candidate"]["feature"] < N_FEATURES for c in result["chosen"])
