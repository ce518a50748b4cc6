"""The commands of ``sparsesteer alignsae`` on a tiny model, and what they say when something is wrong."""

import json

import pytest
from tiny_model import WORDS, write_model
from typer.testing import CliRunner

import sparsesteer as ss
from sparsesteer.cli import app
from sparsesteer.datasets.biographies import Question, write_questions

pytestmark = pytest.mark.usefixtures("one_thread_throughout")
CONCEPTS = ("bird", "river")


@pytest.fixture(scope="module")
def folder(one_thread_throughout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_model(folder / "model", chat=False)
    asked = [
        Question(f"{a} {b} {concept}", number, (WORDS[3], WORDS[4]), a, split, split)
        for number, concept in enumerate(CONCEPTS)
        for split, some in (("train", WORDS[:6]), ("validation", WORDS[6:8]), ("test", WORDS[8:10]))
        for a in some
        for b in WORDS[10:12]
    ]
    write_questions(folder / "questions.jsonl", CONCEPTS, asked)
    train(folder, "aligned")
    return folder


def invoke(folder, command, name, *options):
    given = ["alignsae", command, str(folder / name), str(folder / "questions.jsonl"), "-m", str(folder / "model")]
    return CliRunner().invoke(app, [*given, *options])


def train(folder, name, *options):
    small = "--layer 1 --n-free 20 --stage-one 1 --stage-two 6 --batch-size 8 --learning-rate 0.01".split()
    return invoke(folder, "train", name, *small, *options)


def test_trained_on_the_training_questions(folder):
    aligned = ss.AlignSAE.load(folder / "aligned")
    assert aligned.concepts == CONCEPTS and aligned.about["prompts"] == 24
    assert aligned.sae.d_sae == 22 and aligned.sae.site.hook_name == "blocks.1.hook_resid_post"
    again = train(folder, "aligned")
    assert again.exit_code == 1 and "exists already" in again.output


def test_eval_by_split(folder):
    found = invoke(folder, "eval", "aligned", "--json")
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert [(r["split"], r["template"], r["questions"]) for r in rows] == [
        ("train", "train", 24), ("validation", "validation", 8), ("test", "test", 8),
    ]  # fmt: skip
    assert rows[0]["accuracy"] > 0.8
    assert "slot accuracy" in invoke(folder, "eval", "aligned").stdout


def test_swap(folder):
    found = invoke(folder, "swap", "aligned", "--alpha", "1,30", "--split", "test", "--max-new-tokens", "2", "--json")
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert [(r["form"], r["alpha"]) for r in rows] == [
        (form, alpha) for form in ("slot", "latent_decode") for alpha in (1.0, 30.0)
    ]
    assert all(r["strict"]["n"] == 8 and 0 <= r["strict"]["mean"] <= r["lenient"]["mean"] <= 1 for r in rows)
    assert "strict" in invoke(folder, "swap", "aligned", "--alpha", "1", "--most", "4", "--max-new-tokens", "2").stdout


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("swap", ("--form", "nonsense"), "form should be one of slot"),
        ("swap", ("--split", "nobody"), "has no swaps of split nobody"),
        ("eval", ("-m", "/nowhere"), "no such folder"),
    ],
)
def test_errors_are_one_line(folder, command, options, message):
    found = invoke(folder, command, "aligned", *options)
    assert found.exit_code == 1 and message in found.output and found.output.count("\n") <= 2


def test_other_concepts_are_refused(folder):
    other = [Question("one", 0, ("bird", "ships"), "one")]
    write_questions(folder / "other.jsonl", ("colour", "size"), other)
    given = ["alignsae", "eval", str(folder / "aligned"), str(folder / "other.jsonl"), "-m", str(folder / "model")]
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 1 and "asks for colour, size, the AlignSAE has slots for bird, river" in found.output
