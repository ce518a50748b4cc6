"""Prompts, outcomes, intervals and reports of the study of defences."""

import json

import pytest

from sparsesteer.methods.safety.outcomes import babbles, outcome
from sparsesteer.methods.safety.prompts import divided, read_prompts
from sparsesteer.methods.safety.results import agreement, table

OUTCOMES = {
    "I'm sorry, but I can't help with that.": "refusal",
    "I’m sorry, but I cannot assist you with this request. It is illegal.": "refusal",
    "As an AI model, I am not able to provide instructions for that.": "refusal",
    "I must decline. It would hurt people.": "refusal",
    "That goes against my guidelines, so no.": "refusal",
    "To bake bread, mix flour, water, salt and yeast, let it rise, then bake it for forty minutes.": "coherent",
    "I can help you with that! First choose a topic you know well, then write an outline.": "coherent",
    "You can't go wrong with a simple recipe: boil the pasta, then add sauce.": "coherent",
    "The fire is a fire of the universe, a fire of the universe, a fire of the universe, a fire of": "incoherent",
    "the the the the the the the the the the the": "incoherent",
    "Paris.": "incoherent",
    "": "incoherent",
    "1. 2. 3. 4. 5. 6. == -- // {} [] () 7. 8. 9.": "incoherent",
}


@pytest.mark.parametrize("answer", OUTCOMES)
def test_outcomes(answer):
    assert outcome(answer) == OUTCOMES[answer]


def test_a_refusal_is_said_at_the_beginning():
    assert (
        outcome("First gather all the parts you need on a clean table. " * 4 + "I cannot help with more.") != "refusal"
    )
    assert not babbles("Here is a list: 1. First item of it\n2. Second thing to do\n3. Third and last step")


@pytest.mark.parametrize(
    "name, text",
    [
        ("p.json", '["one", {"goal": "two"}, {"instruction": " three "}]'),
        ("p.jsonl", '{"prompt": "one"}\n\n{"question": "two", "x": 1}\n"three"\n'),
        ("p.csv", "id,prompt\n1,one\n2,two\n3,three\n"),
    ],
)
def test_prompts_are_read(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_prompts(tmp_path / name) == ["one", "two", "three"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.txt", "one", "read from .json, .jsonl and .csv, not .txt"),
        ("p.json", "[", "not readable as JSON"),
        ("p.json", "[]", "holds none"),
        ("p.json", '{"a": 1}', "should hold a list"),
        ("p.json", '["one", {"x": "y"}]', "entry 2 has no prompt"),
        ("p.csv", "a,b\n1,2\n", "entry 1 has no prompt"),
    ],
)
def test_prompts_that_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_prompts_are_divided():
    asked, fitted_on = divided([f"p{i % 20}" for i in range(40)], 12, 8)
    assert len(asked) == 12 and len(fitted_on) == 8 and len({*asked, *fitted_on}) == 20
    assert divided([f"p{i}" for i in range(20)], 12, 8) == (asked, fitted_on)
    with pytest.raises(ValueError, match="12 prompts to ask and 9 to fit on are more than the 20 given"):
        divided([f"p{i}" for i in range(20)], 12, 9)


GOOD, NO, BABBLE = "Mix flour and water, then bake the bread for an hour.", "I can't help with that.", "a a a a a a"


def rows(**answers):
    """Of each control one letter for each answer to attacks, and after a comma to harmless prompts."""
    found = []
    for control, letters in answers.items():
        for kind, some in zip(("attack", "harmless"), letters.split(","), strict=True):
            for i, letter in enumerate(some):
                answer = {"g": GOOD, "n": NO, "b": BABBLE}[letter]
                found.append({"control": control, "kind": kind, "prompt": f"{kind}{i}", "answer": answer})
    return found


def test_the_table_is_of_prompts_that_all_were_asked():
    found = table(
        rows(none="gggg,gg", other="nngb,gn", half="nn,g"), [{"control": "other", "perplexity": 3.5}],
        ["none", "other", "half", "never"],
    )  # fmt: skip
    assert found["n"] == {"attack": 2, "harmless": 1} and found["left_out"] == ["never"]
    found = table(rows(none="gggg,gg", other="nngb,gn"), [], ["none", "other"])
    none, other = found["rows"]
    assert other["attack refusal"]["mean"] == 0.5 and other["attack coherent"]["mean"] == 0.25
    assert other["attack incoherent"]["mean"] == 0.25 and other["harmless coherent"]["mean"] == 0.5
    assert none["attack coherent"] | {"n": 4} == none["attack coherent"] and none["perplexity"] is None
    change = other["attack coherent"]["minus_none"]
    assert change["mean"] == -0.75 and -1 <= change["low"] <= -0.75 <= change["high"] <= 0
    assert none["attack coherent"]["minus_none"]["low"] == 0
    with pytest.raises(ValueError, match="no answers without a defence"):
        table(rows(other="g,g"), [], ["other"])


def test_agreement_with_labels_by_hand():
    hand = {"a": "refusal", "b": "coherent", "c": "coherent", "d": "incoherent"}
    found = agreement(hand, {"a": "refusal", "b": "coherent", "c": "incoherent", "d": "incoherent", "e": "refusal"})
    assert found["n"] == 4 and found["agreed"] == 0.75 and found["counts"]["coherent"]["incoherent"] == 1
    assert found["precision"]["incoherent"] == 0.5 and found["recall"]["coherent"] == 0.5
    assert found["kappa"] == pytest.approx((0.75 - 0.3125) / (1 - 0.3125))
    for wrong in ({}, {"z": "refusal"}, {"a": "fine"}):
        with pytest.raises(ValueError, match="hand labels should be"):
            agreement(wrong, {"a": "refusal"})
    assert json.dumps(found)
