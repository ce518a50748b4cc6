"""A whole study of a tiny model by the command: fit, sweep, eval, and the report that they leave."""

import json
import re
import shutil

import pytest
from conflict_models import conflicts, model, sae, tokenizer
from typer.testing import CliRunner

from sparsesteer.cli import app
from sparsesteer.datasets import read_conflicts, write_conflicts
from sparsesteer.methods.evaluation import study as studies
from sparsesteer.methods.evaluation.contenders import contenders, runs
from sparsesteer.methods.evaluation.prompts import behind_demonstrations, by_split
from sparsesteer.methods.evaluation.protocol import Protocol
from sparsesteer.methods.evaluation.study import Study
from sparsesteer.methods.spare.conflicts import Conflict

METHODS = ("ActAdd", "random features")

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["spare", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def begun(tmp_path_factory, one_thread_throughout):
    """(a folder with a model, SAEs and conflicts, what fit printed)."""
    folder = tmp_path_factory.mktemp("study")
    the_model, the_tokenizer = model(), tokenizer()
    the_model.save_pretrained(folder / "model")
    the_tokenizer.save_pretrained(folder / "model")
    for block in (0, 1):
        sae(block).save(folder / f"sae{block}")
    examples = conflicts(the_model, the_tokenizer, 45)
    for number, example in enumerate(examples):
        example["split"] = ("fit", "fit", "dev", "test", "test")[number % 5]
    write_conflicts(folder / "conflicts.jsonl", examples)
    printed = run("fit", folder / "study", *options(folder)).stdout
    return folder, printed


def options(folder):
    saes = [f"--sae={block}={folder / f'sae{block}'}" for block in (1, 0)]
    return [*saes, "--model", folder / "model", "--data", folder / "conflicts.jsonl", "--kinds", "", "--all",
            "--budget", 2, "--max-new-tokens", 4, "--dense", 2]  # fmt: skip


@pytest.fixture(scope="module")
def finished(begun):
    """The folder of a study whose report is written, and the report."""
    folder, _ = begun
    some = [f"--method={name}" for name in METHODS]
    run("sweep", folder / "study", *some)
    printed = run("eval", folder / "study", *some).stdout
    assert "EM on test" in printed
    return folder / "study", json.loads((folder / "study" / "report.json").read_text())


def the_study(folder):
    saes = {0: sae(0), 1: sae(1)}
    return Study(folder, model(), tokenizer(), saes, [2], progress=False)


def test_a_fit_is_kept_and_goes_on(begun):
    folder, printed = begun
    assert re.match(r"SPARE\(0: \d+ of context, \d+ of memory; 1: ", printed)
    assert run("fit", folder / "study", *options(folder)).stdout == printed
    refused = run("fit", folder / "study", *options(folder), "--n-test", 3, exit_code=1).stderr
    assert "holds a study of other settings" in refused


def test_every_method_is_tried_within_the_budget(finished):
    folder, report = finished
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    searched = [(t["method"], t["toward"]) for t in trials if t["why"] == "search"]
    assert {method for method, _ in searched} == {"SPARE", "none", *METHODS}
    for run_ in set(searched):
        assert searched.count(run_) == (1 if run_[0] == "none" else 2)
    for row in report["choices"]:
        mine = [t for t in trials if (t["method"], t["toward"], t["why"]) == (row["method"], row["toward"], "search")]
        assert row["em"] == max(t["em"] for t in mine) and row["trials"] == len(mine)


def test_the_table_is_of_the_answers_that_were_logged(finished):
    folder, report = finished
    asked = the_study(folder).tested
    lines = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert len(lines) == (3 * 2 + 1) * 5 and {line["seed"] for line in lines} == {42, 43, 44, 45, 46}
    for row in report["table"]:
        side, letter = row["toward"], row["toward"][0].upper()
        some = [ln for ln in lines if ln["method"] == row["method"] and ln["toward"] in (side, "context")]
        some = [ln for ln in some if ln["toward"] == side or row["method"] == "none"]
        wanted = 1 if side == "context" else 0
        shares = [
            sum(c.source_of(a) == wanted for c, a in zip(asked[ln["seed"]], ln["answers"], strict=True))
            / len(ln["answers"])
            for ln in some
        ]
        assert len(shares) == 5
        assert row["measures"][f"EM_{letter}"]["mean"] == pytest.approx(sum(shares) / 5)
    none = [row for row in report["table"] if row["method"] == "none"]
    assert all(row["minus_none"]["mean"] == 0 for row in none) and len(none) == 2
    assert any(row["minus_none"]["mean"] != 0 for row in report["table"])
    assert all(row["measures"]["EM_C->C"]["mean"] == 1 for row in none if row["toward"] == "context")


def test_the_report_is_a_page_with_pictures(finished):
    folder, report = finished
    page = (folder / "README.md").read_text()
    for name in re.findall(r"\((\w+\.png)\)", page):
        assert (folder / name).stat().st_size > 1000
    assert page.count("\n| SPARE |") == 4 and "\n| random features |" in page
    assert [row["site"] for row in report["layers"]] == [0, 1, 2]
    assert all(0 <= row["auc"] <= 1 for row in report["layers"])
    assert "unexplained" in report["layers"][0] and "unexplained" not in report["layers"][2]
    assert f"sparsesteer spare eval {folder.name}" in page and not re.search(r"\bnan\b", page)


def test_the_test_split_is_answered_once(finished, monkeypatch):
    folder, _ = finished
    before = (folder / "test.jsonl").read_bytes()
    monkeypatch.setattr(studies, "answers_of", lambda *given: pytest.fail("answered again"))
    study = the_study(folder)
    some = {name: each for name, each in contenders(study.fit()).items() if name in ("SPARE", "none")}
    study.test(some, study.log, lambda items, what: items)
    assert (folder / "test.jsonl").read_bytes() == before
    log = study.log
    best = log.best("SPARE", "memory")
    log.trials = [trial for trial in log.trials if trial is not best]
    assert log.best("SPARE", "memory").setting != best.setting
    with pytest.raises(ValueError, match="under another setting of SPARE: it is run once"):
        study.test(some, log, lambda items, what: items)


def test_a_test_without_a_sweep_and_wrong_options_are_told(begun, tmp_path):
    folder, _ = begun
    shutil.copytree(folder / "study", tmp_path / "copy", ignore=shutil.ignore_patterns("t*.jsonl"))
    assert "run the sweep first" in run("eval", tmp_path / "copy", exit_code=1).stderr
    assert (
        "there is no AddAct; there are SPARE" in run("sweep", tmp_path / "copy", "--method=AddAct", exit_code=1).stderr
    )
    assert "give a block and an SAE" in run("fit", tmp_path / "other", "--sae", "demo", exit_code=1).stderr
    assert "No such file" in run("sweep", tmp_path / "none", exit_code=1).stderr


def test_demonstrations_are_shared_and_of_the_kinds_asked_for():
    pool = [Conflict(f"q{i}", f"sub {i}", (f"s{i}",), (f"o{i}",), f"org {i}") for i in range(9)]
    asked = [Conflict(f"t{i}", "c", ("s",), ("o",)) for i in range(3)]
    found = behind_demonstrations(asked, pool, ["ss", "so", "oo"], seed=1)
    assert len({each.demonstrations for each in found}) == 1 and [each.question for each in found] == ["t0", "t1", "t2"]
    shown = {(d.context.split()[0], d.answer[0]) for d in found[0].demonstrations}
    assert shown == {("sub", "s"), ("sub", "o"), ("org", "o")}
    orders = {behind_demonstrations(asked, pool, ["ss", "so"], seed)[0].demonstrations for seed in range(8)}
    assert len(orders) > 6
    with pytest.raises(ValueError, match="10 demonstrations need as many different questions, the pool has 9"):
        behind_demonstrations(asked, pool, 10 * ["ss"], 1)


def test_questions_without_a_split_are_divided():
    examples = [{"question": f"q{i // 2}", "sub_context": "c", "sub_answer": "s", "org_answer": "o"} for i in range(40)]
    found = by_split(examples)
    assert {name: len(some) for name, some in found.items()} == {"fit": 16, "dev": 8, "test": 16}
    questions = [{c.question for c in some} for some in found.values()]
    assert not questions[0] & questions[2] and not questions[1] & questions[2]
    with pytest.raises(ValueError, match="example 0: split should be one of fit, dev, test, got 'train'"):
        by_split([{**examples[0], "split": "train"}])
    with pytest.raises(ValueError, match="no examples in the split dev"):
        by_split([{**each, "split": "fit"} for each in examples])


def test_protocols_are_checked():
    with pytest.raises(ValueError, match="a study has no shots; it has kinds"):
        Protocol.of({"shots": 3})
    with pytest.raises(ValueError, match="budget should be a positive whole number, got 0"):
        Protocol.of({"budget": 0})
    with pytest.raises(ValueError, match="test_seeds should not be empty"):
        Protocol.of({"test_seeds": []})
    assert Protocol.of({"kinds": ["ss"]}).kinds == ("ss",)


def test_runs_of_layers():
    assert runs([3, 4]) == [[3], [4], [3, 4]]
    assert runs([1, 2, 3, 4]) == [[1], [2], [3], [4], [1, 2], [2, 3], [3, 4], [1, 2, 3], [2, 3, 4], [1, 2, 3, 4]]


def test_read_conflicts_is_what_a_study_asks(finished):
    folder, _ = finished
    assert len(read_conflicts(folder / "conflicts.jsonl")) == 45
