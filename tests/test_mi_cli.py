"""The commands of ``sparsesteer mi`` on a tiny model, from explanations to the report of a study."""

import json
import random
import re

import pytest
import torch
from tiny_model import N_FEATURES, WORDS, write_model, write_sae
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import sparsesteer as ss
from sparsesteer.cli import app
from sparsesteer.generation import hidden_states_at
from sparsesteer.methods.evaluation.json_lines import JsonLines
from sparsesteer.methods.mi.contexts import AROUND, LENGTH, context_notes, top_contexts, windows_of
from sparsesteer.methods.safety.answering import answers, perplexity
from sparsesteer.methods.safety.report import answer_id

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == exit_code, result.output + repr(result.exception)
    return result


def sentences(count, words, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_thread_throughout):
    """A model, an SAE, a corpus and prompts of either kind."""
    folder = tmp_path_factory.mktemp("mi")
    write_model(folder / "model")
    write_sae(folder / "sae")
    (folder / "corpus.txt").write_text(" ".join(sentences(1, 700)))
    for seed, name in enumerate(("attacks", "harmless")):
        (folder / f"{name}.json").write_text(json.dumps(sentences(14, 5, seed)))
    (folder / "lists.json").write_text(json.dumps({"water": WORDS[:3], "sky": WORDS[3:5]}))
    return folder


def with_models(folder):
    return ("--model", folder / "model", "--sae", folder / "sae")


@pytest.fixture(scope="module")
def explained(folder):
    """The file of labelled explanations beside the SAE."""
    printed = run("mi", "explain", *with_models(folder), "--corpus", folder / "corpus.txt", "--count", 3).stdout
    assert "mutual information, product" in printed
    file = folder / "sae" / "explanations.safetensors"
    assert "water" in run("mi", "label", file, "--lists", folder / "lists.json").stdout
    return file


def test_contexts_are_those_of_largest_activation(folder):
    model, tokenizer = (kind.from_pretrained(folder / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    sae = ss.SAE.load_from_disk(folder / "sae")
    windows = windows_of([(folder / "corpus.txt").read_text()], tokenizer, 10_000)
    assert windows.shape == (5, LENGTH)
    with torch.no_grad(), hidden_states_at(model, sae.site) as caught:
        model(windows)
    codes = sae.encode(caught[0])  # [5, LENGTH, F]
    codes[:, 0] = 0
    for batch in (2, 8):
        found = top_contexts(model, sae, windows, count=3, batch=batch)
        torch.testing.assert_close(found.values, codes.amax(1).T.topk(3).values)
        torch.testing.assert_close(found.density, (codes[:, 1:] > 0).float().mean((0, 1)))
        for feature in range(N_FEATURES):
            for value, w, p in zip(
                found.values[feature], found.windows[feature], found.positions[feature], strict=True
            ):
                assert (w >= 0) == (p >= 0) == (value > 0)
                if w >= 0:
                    torch.testing.assert_close(codes[w, p, feature], value)
    notes = context_notes(model, tokenizer, sae, found, most=2)
    feature = int(found.values[:, 0].argmax())
    first = notes[feature]["contexts"][0]
    assert max(first["activations"]) == pytest.approx(float(found.values[feature, 0]), rel=1e-3)
    assert 1 < len(first["tokens"]) == len(first["activations"]) <= 2 * AROUND + 1
    with pytest.raises(ValueError, match="fewer than one window"):
        windows_of(["one bird"], tokenizer, 1000)


def test_explained_features_are_looked_up(folder, explained):
    facts = json.loads(run("features", 5, *with_models(folder), "--json").stdout)
    assert len(facts["words"]) == 3 and facts["contexts"] and facts["label"] in (None, "water", "sky")
    word = facts["words"][0]["word"]
    found = json.loads(run("features", "--search", word, *with_models(folder), "--json").stdout)
    assert found["found"] > 0 and all(word in [w["word"] for w in f["words"]] for f in found["features"])
    by_corpus = (
        "--corpus",
        folder / "corpus.txt",
        "--corpus-words",
        "--words",
        4,
        "--out",
        folder / "words.safetensors",
    )
    run("mi", "explain", *with_models(folder), *by_corpus, "--score", "pointwise", "--vectors", "decoder")
    assert len(ss.Explanations.load(folder / "words.safetensors").vocabulary) == 4


def test_labels_are_asked_once(folder, explained):
    lines = explained.with_name("explanations.safetensors.labels.jsonl")
    before = lines.read_text()
    run("mi", "label", explained, "--lists", folder / "lists.json")
    assert lines.read_text() == before


def test_a_local_model_is_asked(folder, explained, tmp_path):
    """The tiny one babbles."""
    file = tmp_path / "copy.safetensors"
    file.write_bytes(explained.read_bytes())
    stderr = run("mi", "label", file, "--local-model", folder / "model", exit_code=1).stderr
    assert "answers are junk" in stderr and file.read_bytes() == explained.read_bytes()
    assert "give one of them" in run("mi", "label", file, "--local-model", "x", "--endpoint", "y", exit_code=1).stderr
    assert "--endpoint-model" in run("mi", "label", file, "--endpoint", "http://y", exit_code=1).stderr


def test_a_plan_is_written(folder, explained, tmp_path):
    plan = tmp_path / "plan.safetensors"
    options = (*with_models(folder), "--rule", "gap_fill", "--amount", 2)
    run("mi", "steer", plan, *options, "--explanations", explained)
    assert ss.SteeringPlan.load(plan).gap == 2.0 and ss.SteeringPlan.load(plan).preserve_norm
    run("mi", "steer", plan, *options, "--features", "3,4")
    assert ss.SteeringPlan.load(plan).features.tolist() == [3, 4]


def study(folder, explained, *more):
    return (
        "mi", "eval", folder / "study", "--attacks", folder / "attacks.json", "--harmless", folder / "harmless.json",
        "--text", folder / "corpus.txt", "--explanations", explained, *with_models(folder), "--n-attacks", 6,
        "--n-harmless", 5, "--n-fit", 6, "--max-new-tokens", 4, "--batch", 4, *more,
    )  # fmt: skip


CONTROLS = (
    "none",
    "system prompt",
    "direction=3",
    "amplify, explained=40",
    "calibrate, random=9",
    "gap_fill, contrast=5",
)


@pytest.fixture(scope="module")
def finished(folder, explained):
    """The folder of a report, and the rows of answers."""
    some = [part for control in CONTROLS for part in ("--control", control)]
    printed = run(*study(folder, explained, *some, "--report", folder / "report")).stdout
    assert "shares in percent" in printed
    return folder / "report", JsonLines.opened(folder / "study" / "answers.jsonl").rows


def test_the_study_asks_everything_once(folder, explained, finished):
    rows = finished[1]
    names = [control.replace("=", " ") for control in CONTROLS]
    assert {row["control"] for row in rows} == set(names) and len(rows) == len(names) * 11
    whole = (folder / "study" / "answers.jsonl").read_bytes()
    kept = whole.splitlines(keepends=True)
    (folder / "study" / "answers.jsonl").write_bytes(b"".join(kept[:20]) + b'{"cut')
    some = [part for control in CONTROLS for part in ("--control", control)]
    run(*study(folder, explained, *some))
    again = JsonLines.opened(folder / "study" / "answers.jsonl").rows
    assert sorted(map(str, again)) == sorted(map(str, rows))
    assert (
        "another study, which differs in features" in run(*study(folder, explained, "--n-fit", 5), exit_code=1).stderr
    )


def test_answers_are_those_of_each_prompt_alone(folder, finished):
    """In batches, padded on the left, and unsteered."""
    model, tokenizer = (kind.from_pretrained(folder / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    from sparsesteer.methods.safety.trials import digest

    known = {row["prompt"]: row["answer"] for row in finished[1] if row["control"] == "none"}
    for prompt in json.loads((folder / "attacks.json").read_text()):
        if digest(prompt) in known:
            assert answers(model, tokenizer, [prompt], 4) == [known[digest(prompt)]]
    by_control = {c: [r["answer"] for r in finished[1] if r["control"] == c] for c in ("none", "direction 3")}
    assert by_control["none"] != by_control["direction 3"]


def test_the_report_holds_figures_and_no_text(folder, finished, explained):
    report, rows = finished
    found = json.loads((report / "report.json").read_text())
    assert [row["control"] for row in found["rows"]] == [c.replace("=", " ") for c in CONTROLS]
    assert found["n"] == {"attack": 6, "harmless": 5} and found["left_out"] == []
    assert found["rows"][0]["perplexity"] > 1 and found["rows"][1]["perplexity"] is None
    for kind in ("attack", "harmless"):
        for row in found["rows"]:
            total = sum(row[f"{kind} {o}"]["mean"] for o in ("refusal", "coherent", "incoherent"))
            assert total == pytest.approx(1)
    assert len({tuple(found["features"][which]) for which in ("explained", "contrast", "random")}) == 3
    texts = [p for name in ("attacks", "harmless") for p in json.loads((folder / f"{name}.json").read_text())]
    for file in report.iterdir():
        content = file.read_text()
        assert not [text for text in [*texts, *(r["answer"] for r in rows if len(r["answer"]) > 20)] if text in content]
    assert {file.name for file in report.iterdir()} == {"README.md", "report.json", "trade_off.svg", "outcomes.svg"}
    assert (report / "trade_off.svg").read_text().startswith("<?xml")


def test_labels_by_hand_are_compared(folder, finished, explained):
    labels = {answer_id(row): "coherent" for row in finished[1][:5]}
    (folder / "hand.json").write_text(json.dumps({"labels": labels}))
    run(
        *study(folder, explained, "--only-report", "--hand-labels", folder / "hand.json", "--report", folder / "judged")
    )
    assert "were labelled by hand" in (folder / "judged" / "README.md").read_text()
    assert json.loads((folder / "judged" / "report.json").read_text())["rules"]["n"] == 5


def test_perplexity_is_of_the_text(folder):
    model, tokenizer = (kind.from_pretrained(folder / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    text = (folder / "corpus.txt").read_text()
    ids = torch.tensor([tokenizer(text)["input_ids"][:512]]).view(2, 256)
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss for row in ids]
    assert perplexity(model, tokenizer, text, 600) == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)
    with pytest.raises(ValueError, match="too short for its perplexity"):
        perplexity(model, tokenizer, "one bird")


def test_mt_bench_in_fastchats_form(folder, tmp_path):
    questions = [{"question_id": i, "category": "writing", "turns": sentences(2, 4, i)} for i in (81, 82)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    out = tmp_path / "answers" / "tiny.jsonl"
    command = ("mi", "mt-bench", tmp_path / "question.jsonl", out, *with_models(folder), "--max-new-tokens", 3)
    run(*command)
    rows = JsonLines.opened(out).rows
    assert [row["question_id"] for row in rows] == [81, 82] and {row["model_id"] for row in rows} == {"tiny"}
    assert set(rows[0]) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert all(len(row["choices"][0]["turns"]) == 2 and row["choices"][0]["index"] == 0 for row in rows)
    before = out.read_text()
    run(*command, "--rule", "amplify", "--amount", 9, "--features", "3")
    assert out.read_text() == before  # answered already
    (tmp_path / "question.jsonl").write_text('{"turns": ["x"]}\n')
    assert "line 1: a question should have" in run(*command, exit_code=1).stderr


ERRORS = [
    (("steer", "p", "--rule", "amplify", "--amount", 1), "one of them"),
    (("steer", "p", "--rule", "amplify", "--amount", 1, "--features", "x"), "give numbers, as in 12,99"),
    (("steer", "p", "--rule", "raise", "--amount", 1, "--features", "1"), "one of amplify"),
    (("explain", "--corpus-words"), "give the text with --corpus"),
    (
        ("eval", "s", "--attacks", "a", "--harmless", "h", "--features", "1", "--control", "none=x"),
        "a defence and a strength",
    ),
]


@pytest.mark.parametrize("arguments, message", ERRORS)
def test_errors_are_one_line(folder, arguments, message):
    stderr = run("mi", *arguments, *with_models(folder), exit_code=1).stderr
    assert message in re.sub(r"\s+", " ", stderr) and "Traceback" not in stderr


def test_explanations_need_a_place():
    assert "has explanations already" in run("mi", "explain", exit_code=1).stderr.replace("\n", " ")
