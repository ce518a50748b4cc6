"""The demonstration's parts on a tiny model; the real demonstration is too long for the suite."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_model import N_FEATURES, WIDTH, WORDS, write_model, write_sae
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sparsesteer import Edit, hooks, ops
from sparsesteer.cli import app
from sparsesteer.demo import choose, compare, speed, strength_plot
from sparsesteer.demo.block_hook import transformed
from sparsesteer.demo.setting import Setting
from sparsesteer.logit_lens import direction_logits, promoted_tokens, word_tokens, words_of

LENIENT = choose.Rule(most_surprise=math.inf, most_repetition=1.0, shortlist=4, strengths=(2.0, 8.0), new_tokens=8)


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


def test_forms_of_a_word_count_once():
    assert choose.distinct_words(["ships", "bird", "Shipping", "birch"]) == [(0, "ships"), (1, "bird"), (3, "birch")]


def test_mean_cosine():
    rows = torch.nn.functional.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=-1)
    pairs = [float(a @ b) for a, b in itertools.permutations(rows, 2)]
    assert choose.mean_cosine(rows) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert choose.mean_cosine(rows[:1]) == 0


def test_repetition():
    assert choose.repetition("a b c d e") == 0
    assert choose.repetition("one bird sings. One bird sings.") == pytest.approx(1 / 4)
    assert choose.repetition("short") == 0


def test_the_shortlist_keeps_to_the_rule(setting):
    rule = replace(LENIENT, least_density=0.01, most_density=0.04, largest_overlap=0.3)
    candidates = choose.shortlist(setting, rule)
    features = [candidate.feature for candidate in candidates]
    assert 0 < len(features) <= 4 and len(set(features)) == len(features)
    assert all(0.01 <= setting.density[feature] <= 0.04 for feature in features)
    likenesses = [candidate.likeness for candidate in candidates]
    assert likenesses == sorted(likenesses, reverse=True)
    rows = torch.nn.functional.normalize(setting.sae.whole_decoder()[0][features], dim=-1)
    assert (rows @ rows.T - 2 * torch.eye(len(rows))).max() <= 0.3
    assert choose.shortlist(setting, rule) == candidates


def test_no_feature_of_the_density_is_an_error(setting):
    with pytest.raises(ValueError, match="density"):
        choose.shortlist(setting, replace(LENIENT, least_density=0.9, most_density=1.0))


def heard(feature, used, surprise=0.0, repetition=0.0, value=1.0):
    candidate = choose.Candidate(feature, ("word",), 0.5)
    return choose.Audition(candidate, value, "text", ("word",) * used, surprise, repetition)


def test_the_best_are_readable_and_of_different_features():
    rule = choose.Rule(chosen=2, most_surprise=1.0, most_repetition=0.1)
    auditions = [
        heard(1, used=9, surprise=1.1),
        heard(2, used=9, repetition=0.2),
        heard(3, used=2),
        heard(4, used=5, value=1.0),
        heard(4, used=5, value=2.0, surprise=-0.1),
        heard(5, used=0),
    ]
    assert choose.best(auditions, rule) == [auditions[4], auditions[2]]


def test_the_same_features_are_chosen_again(setting):
    chosen = choose.choose_features(setting, LENIENT, untracked)
    assert chosen and chosen == choose.choose_features(setting, LENIENT, untracked)
    for audition in chosen:
        with hooks.steer(setting.model, setting.sae.plan(audition.edit), positions="generated"):
            assert setting.text(setting.answer(8)) == audition.answer
        own = setting.own_text.split()
        assert all(word in audition.answer.split() and word not in own for word in audition.used)


def test_the_control_changes_as_much_in_another_direction(setting):
    plan = setting.sae.plan(Edit.set({3: 5.0}))
    other = compare.control_plan(plan, setting.sae.whole_decoder()[0][7])
    h = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    by_plan, by_other = ops.steer(h, plan) - h, ops.steer(h, other) - h
    torch.testing.assert_close(by_plan.norm(dim=-1), by_other.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(by_other, setting.sae.whole_decoder()[0][7][None]).abs()
    torch.testing.assert_close(cosine, torch.ones(6))


def test_a_random_feature_lives_and_is_not_chosen():
    density = torch.tensor([0.0, 0.1, 0.1, 0.0, 0.1])
    picks = {compare.random_feature(density, [1], seed) for seed in range(30)}
    assert picks == {2, 4}
    assert density[1] == pytest.approx(0.1)


def test_comparison_puts_three_texts_beside_each_other(setting):
    result = compare.compare(setting, heard(3, 1, value=40.0), 9)
    assert result.unsteered == setting.own_text and result.control != result.unsteered
    assert (result.steered, result.control_feature) == ("text", 9)


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


def test_steering_without_effect_is_a_disagreement():
    same = torch.ones(2, 3)
    differences = speed.relative_differences({"unsteered": same, "sparsesteer": same, speed.GATHERED: same})
    assert differences["sparsesteer"] == math.inf


def test_the_interval_holds_the_median():
    values = torch.randn(15, generator=torch.Generator().manual_seed(0))
    low, high = speed.median_interval(values)
    assert values.min() <= low <= values.median() <= high <= values.max()
    assert speed.median_interval(torch.ones(15)) == (1.0, 1.0)
    assert speed.median_interval(values) == (low, high)


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
        assert curve.promoted_mass[i] == pytest.approx(mass.item(), rel=1e-4)
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


def test_the_command_runs_to_the_end(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsesteer.cli.demo.Rule", lambda: LENIENT)
    arguments = ["demo", "--model", folders / "model", "--sae", folders / "sae", "--rounds", 3, "--output", tmp_path]
    arguments += ["--prompt", "seven ships wait"]
    printed = CliRunner().invoke(app, [str(a) for a in arguments])
    assert printed.exit_code == 0, printed.output
    for part in ("Rule:", "unsteered", "equal norm", "tokens/s", "strength.png"):
        assert part in printed.stdout.replace("\n", " "), part
    result = json.loads(CliRunner().invoke(app, [str(a) for a in [*arguments, "--json"]]).stdout)
    assert {"rule", "chosen", "comparisons", "speed", "strength"} == set(result)
    assert all(c["candidate"]["feature"] < N_FEATURES for c in result["chosen"])
