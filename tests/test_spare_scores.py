"""The paper's measures by hand, intervals by brute force, the search of settings, the log of trials."""

import json
import math

import numpy as np
import pytest

from sparsesteer.methods.evaluation.evidence import area_under_curve
from sparsesteer.methods.evaluation.scores import behaviours, by_question, difference, hits, measured, share
from sparsesteer.methods.evaluation.trials import Trial, TrialLog, searched
from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY, NEITHER, Conflict

SAID = [Conflict(f"q{i // 2}", f"The capital is Rome, it says {i}.", ("Rome",), ("Paris", "Lutetia")) for i in range(6)]


def test_answers_count_for_a_side_as_they_are_normalised():
    answers = ["the Rome.", "rome", "PARIS", "Lutetia", "Rome, it says", ""]
    assert hits(SAID, answers, "context").tolist() == [True, True, False, False, False, False]
    assert hits(SAID, answers, "memory").tolist() == [False, False, True, True, False, False]
    # Macnoise: wherever it stands in the context, and an empty answer does
    assert hits(SAID, answers, "context", in_context=True).tolist() == [True, True, False, False, True, True]
    assert hits(SAID, answers, "memory", in_context=True).tolist() == hits(SAID, answers, "memory").tolist()
    assert behaviours(SAID, answers).tolist() == [CONTEXT, CONTEXT, MEMORY, MEMORY, NEITHER, NEITHER]


def test_measures_are_shares_of_what_was_unsteered():
    questions = 2 * [[conflict.question for conflict in SAID]]
    unsteered = [np.array([1, 1, 0, 0, -1, -1], np.int8), np.array([1, 0, 0, 0, -1, 1], np.int8)]
    steered = [np.array([1, 0, 1, 0, 1, 0], bool), np.array([0, 1, 1, 1, 0, 0], bool)]
    found = measured(steered, unsteered, questions, "memory")
    assert list(found) == ["EM_M", "EM_C->M", "EM_M->M"]
    assert found["EM_M"].mean == pytest.approx(0.5) and found["EM_M"].sd == pytest.approx(0) and found["EM_M"].n == 12
    assert found["EM_C->M"].mean == pytest.approx((1 / 2 + 0 / 2) / 2) and found["EM_C->M"].n == 4
    assert found["EM_M->M"].mean == pytest.approx((1 / 2 + 3 / 3) / 2)
    assert found["EM_M->M"].sd == pytest.approx(np.std([0.5, 1], ddof=1))
    assert list(measured(steered, unsteered, questions, "context")) == ["EM_C", "EM_M->C", "EM_C->C"]


def test_nothing_of_a_kind_is_nan_and_one_seed_has_no_spread():
    found = share([np.array([True, False])], [np.array([False, False])], [["a", "b"]])
    assert math.isnan(found.mean) and math.isnan(found.low) and found.n == 0
    assert math.isnan(share([np.array([True, False])], [np.ones(2, bool)], [["a", "b"]]).sd)


def test_a_share_and_a_difference_of_nothing_asked_are_nan():
    nothing = [np.zeros(0, dtype=bool)]
    assert np.isnan(share(nothing, nothing, [[]]).mean) and share(nothing, nothing, [[]]).n == 0
    assert np.isnan(difference(nothing, nothing, [[]])).all()


def test_intervals_draw_questions_with_all_their_conflicts_and_seeds():
    random = np.random.RandomState(3)
    questions = 3 * [[f"q{i // 5}" for i in range(200)]]
    shared = random.rand(40) < 0.4  # all conflicts of a question are answered alike
    found = [np.repeat(shared, 5) for _ in range(3)]
    ours = share(found, [np.ones(200, bool)] * 3, questions)
    half = 1.96 * math.sqrt(shared.mean() * (1 - shared.mean()) / 40)
    assert ours.high - ours.low == pytest.approx(2 * half, rel=0.15)
    alone = share(found, [np.ones(200, bool)] * 3, 3 * [range(200)])
    assert ours.high - ours.low > 2 * (alone.high - alone.low)
    assert ours.low < ours.mean < ours.high


def test_a_difference_is_paired():
    random = np.random.RandomState(0)
    theirs = [random.rand(300) < 0.5 for _ in range(2)]
    ours = [each.copy() for each in theirs]
    for each in ours:
        each[:30] = True
    mean, low, high = difference(ours, theirs, 2 * [range(300)])
    assert mean == pytest.approx(np.mean([o.mean() - t.mean() for o, t in zip(ours, theirs, strict=True)]))
    assert 0 < low < mean < high < 0.12
    assert difference(ours, ours, 2 * [range(300)]) == (0, 0, 0)
    sums = by_question([np.array([1.0, 2, 4]), np.array([8.0])], [["b", "a", "b"], ["c"]])
    assert sums.tolist() == [[5, 2, 0], [0, 0, 8]]


def test_seeds_may_ask_other_questions():
    found = [np.array([1, 1, 0, 0], bool), np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], bool)]
    questions = [range(4), range(10, 20)]
    both = share(found, [np.ones(4, bool), np.ones(10, bool)], questions)
    assert both.mean == 0.5 and both.sd == 0 and both.n == 14
    four = share(found[:1], [np.ones(4, bool)], questions[:1])
    assert four.low < both.low < 0.5 < both.high < four.high  # the other seed's 10 make the 4 more certain
    mean, low, high = difference(found, [~each for each in found], questions)
    assert mean == 0 and low < 0 < high


@pytest.mark.parametrize("seed", range(3))
def test_area_under_the_curve(seed):
    random = np.random.RandomState(seed)
    scores, positive = random.randint(0, 5, 40), random.rand(40) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert area_under_curve(scores.tolist(), positive.tolist()) == pytest.approx(np.mean(pairs))
    assert math.isnan(area_under_curve([1.0], [True]))


GRID = {"alpha": (1, 2, 3, 4), "k": (8, 32, 128)}


@pytest.mark.parametrize("budget", [1, 4, 6, 100])
def test_a_search_stays_within_its_budget_and_goes_along_the_axes(budget):
    tried = []

    def score(setting):
        tried.append(dict(setting))
        return -((setting["alpha"] - 3) ** 2) - (setting["k"] == 32)

    best = searched(GRID, {"alpha": 1, "k": 32}, budget, score)
    assert len(tried) == len({json.dumps(each) for each in tried}) <= budget
    assert tried[0] == {"alpha": 1, "k": 32} and max(tried, key=lambda s: (s["alpha"] == 3, s == best)) == best
    if budget == 100:
        assert best == {"alpha": 3, "k": 8} and len(tried) == 4 + 2 + 3  # the other alphas again, at that k


def test_a_method_without_settings_is_tried_once():
    tried = []
    assert searched({}, {}, 5, lambda setting: tried.append(setting) or 0.5) == {} and tried == [{}]


def trial(em, setting, method="SPARE", why="search"):
    return Trial(method, "memory", setting, em, 0.1, 1.0, why)


def test_the_log_goes_on_where_it_was_cut_off(tmp_path):
    path = tmp_path / "trials.jsonl"
    log = TrialLog.opened(path)
    for each in (trial(0.2, {"layers": [1, 2]}), trial(0.4, {"layers": [3]}), trial(0.9, {"layers": [4]}, why="scan")):
        log.add(each)
    with path.open("a") as file:
        file.write('{"method": "SPA')
    again = TrialLog.opened(path)
    assert again.trials == log.trials and path.read_text().endswith("\n")
    assert again.best("SPARE", "memory").setting == {"layers": [3]}  # what was only scanned is not chosen
    assert again.best("SPARE", "context") is None
    assert again.found("SPARE", "memory", {"layers": (1, 2)}).em == 0.2  # a tuple is a list on disk
    assert again.found("ActAdd", "memory", {"layers": [1, 2]}) is None
    path.write_text('{"method": "SPARE"}\n')
    with pytest.raises(ValueError, match="is no log of trials"):
        TrialLog.opened(path)
