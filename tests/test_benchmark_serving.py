"""The benchmark of serving: turns, gate, goals and clocks on engines that are made up, and once on vLLM itself."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsesteer.benchmarks import serving, serving_rows
from sparsesteer.benchmarks.gate import WrongResult
from sparsesteer.benchmarks.own_time import OwnTime
from sparsesteer.benchmarks.serving_engine import Answers, Spent
from sparsesteer.benchmarks.serving_rows import IDLE, PUBLISHED, STEERING, VANILLA, Arm, Case, Times

ROOT = Path(__file__).resolve().parents[1]
ONE, TWO = Arm(STEERING, 1), Arm(STEERING, 2)
CASE = Case(2, 4, 3, (IDLE, ONE, TWO))


class FakeEngine:
    """Answers as it is told, by whether a load is steered, and notes its steps in a common list."""

    def __init__(self, name, made, steps=3, plain=((1, 2, 3), (4, 5, 6)), steered=((7, 8, 9), (9, 9, 9))):
        self.name, self.made, self.steps = name, made, steps
        self.says = {False: plain, True: steered}

    def begin(self, load):
        self.load, self.left = load, self.steps
        return Spent(1.0, 0.5)

    def step(self):
        self.made.append(self.name)
        self.left -= 1
        return Spent(2.0, 1.5), self.left > 0

    def answers(self):
        tokens = [list(each) for each in self.says[any(self.load.wishes)]]
        return Answers(tokens, [[0.0] * 3 for _ in tokens])

    def own_seconds(self):
        return 0.25

    def status(self):
        return {"unsteered_requests": 0}


def setup_that_expects(tokens):
    return SimpleNamespace(name="fake", vocabulary=99, expected=lambda prompts, wishes, new: tokens[: len(prompts)])


def engines(**options):
    made = []
    return {PUBLISHED: FakeEngine("p", made), STEERING: FakeEngine("s", made, **options)}, made


def test_engines_take_turns_until_each_is_done():
    made = []
    spent = serving.take_turns([FakeEngine("a", made, 4), FakeEngine("b", made, 2)], [CASE.load(VANILLA, 0, 99)] * 2)
    assert "".join(made) == "abba" + "aa"
    assert [len(each) for each in spent] == [5, 3] and spent[1] == [(1.0, 0.5), (2.0, 1.5), (2.0, 1.5)]


def test_a_load_has_the_same_prompts_for_every_arm_and_wishes_of_its_own():
    loads = [CASE.load(arm, 1, 99) for arm in (VANILLA, ONE, TWO)]
    assert loads[0].prompts == loads[1].prompts == loads[2].prompts != CASE.load(VANILLA, 2, 99).prompts
    assert [load.wishes for load in loads] == [[None, None], ["spec-0", "spec-0"], ["spec-0", "spec-1"]]


def test_right_answers_pass_and_wrong_ones_close_the_gate():
    right = setup_that_expects([[7, 8, 9], [9, 9, 9]])
    serving.check(CASE, right, engines()[0])
    with pytest.raises(WrongResult, match="unsteered answers are not those of vLLM as published"):
        serving.check(CASE, right, engines(plain=((1, 2, 4), (4, 5, 6)))[0])
    with pytest.raises(WrongResult, match="1 specs: answers are not those of Hugging Face"):
        serving.check(CASE, setup_that_expects([[7, 8, 8], [9, 9, 9]]), engines()[0])
    with pytest.raises(WrongResult, match="steering changes no answer"):
        serving.check(CASE, setup_that_expects([[1, 2, 3], [4, 5, 6]]), engines(steered=((1, 2, 3), (4, 5, 6)))[0])


def test_every_arm_is_measured_beside_vllm_as_published():
    both, made = engines()
    rows = serving.measure(CASE, setup_that_expects([]), both, rounds=2, rest=0)
    assert [(row.engine, row.n_specs, row.rounds) for row in rows] == [(STEERING, n, 2) for n in (0, 1, 2)]
    assert made.count("p") == 3 + 2 * 3 * 3  # once to warm up
    assert {row.published_tokens_per_second for row in rows} == {6 / 7.0}
    assert [row.own_us for row in rows] == [pytest.approx(0.25e6 / 3)] * 3
    assert [row.to_one_spec for row in rows] == [None, None, 1.0]


def times(cpu, own=0.0):
    """Of three rounds whose arm needs so much of the processor where vLLM as published needs 1."""
    return [Times([Spent(1.0, 1.0)] * 3, [Spent(cpu, cpu)] * 3, own)] * 3


@pytest.mark.parametrize(
    ("arm", "cpu", "own", "one", "met"),
    [
        (IDLE, 1.5, 0.004 * 4.5, None, True),  # judged by the time in our code alone
        (IDLE, 1.0, 0.006 * 3, None, False),
        (ONE, 1.03, 0.1, None, True),
        (ONE, 1.04, 0.0, None, False),
        (TWO, 1.02, 0.0, 1.0, True),
        (TWO, 1.02, 0.0, 0.98, False),
    ],
)
def test_goals(arm, cpu, own, one, met):
    row = serving_rows.row_of(CASE, setup_that_expects([]), arm, times(cpu, own), times(one) if one else None)
    assert row.goal_met == met and ("missed!" in row.cells()[-1]) != met
    assert row.ratio.median == pytest.approx(1 / cpu) and row.cpu_ratio.median == pytest.approx(1 / cpu)


def test_time_in_what_ours_call_is_not_ours(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("sparsesteer.benchmarks.own_time.process_time", lambda: now[0])

    def passing(seconds, then=lambda: None):
        def function():
            now[0] += seconds
            return then()

        return function

    clock = OwnTime()
    inner = clock.ours(passing(1))
    clock.ours(passing(2, clock.theirs(passing(8, inner))))()
    assert clock.seconds == 3


@pytest.mark.vllm
@pytest.mark.slow
def test_the_command_on_a_tiny_model(tmp_path):
    pytest.importorskip("vllm")
    file = tmp_path / "rows.json"
    command = ["--model", "tiny", "--case", "few", "--rounds", "2", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "sparsesteer.benchmarks.serving", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(file.read_text())
    assert [row["n_specs"] for row in rows] == [0, 0, 1, 16] and all(0 < row["own_percent"] < 20 for row in rows)
    assert "tiny, 16 requests" in done.stdout and "hotwire-vllm 0.1.2 is left out" in done.stdout
