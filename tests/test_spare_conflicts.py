"""Conflict prompts: their text, whose answer was given, demonstrations from other questions."""

import pytest

from sparsesteer.methods.spare import Conflict, Demonstration, exact_match, with_demonstrations
from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY, NEITHER


def example(i=0, **changes):
    given = {
        "question": f"who {i}",
        "sub_context": f"it is B{i}",
        "org_context": f"it is A{i}",
        "sub_answer": [f"B{i}", "bee"],
        "org_answer": f"A{i}",
    }
    return given | changes


def test_prompt_has_the_papers_form():
    shown = {"context": "It is C.", "question": "what", "answer": "C"}
    conflict = Conflict.of(example(demonstrations=[shown]), 0)
    assert conflict.prompt == (
        "context: It is C.\nquestion: what\nanswer: C\n\ncontext: it is B0\nquestion: who 0\nanswer:"
    )
    assert conflict.answered("B0") == conflict.prompt + " B0\n\n"
    assert Conflict.of(conflict, 7) is conflict


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("B0", CONTEXT),
        (" the b0. ", CONTEXT),
        ("Bee!", CONTEXT),
        ("a A0", MEMORY),
        ("B0 A0", NEITHER),
        ("", NEITHER),
        ("B", NEITHER),
    ],
)
def test_source_of_an_answer(answer, source):
    assert Conflict.of(example(), 0).source_of(answer) == source


def test_what_both_could_have_given_is_of_neither():
    assert Conflict.of(example(org_answer="b0"), 0).source_of("B0") == NEITHER


def test_accents_match_however_they_are_encoded():
    assert exact_match("São  Paulo", ["Sa\u0303o Paulo"]) and not exact_match("Sao Paulo", ["São Paulo"])
    assert exact_match("thean answer", ["Thean-answer".replace("-", " ")]) and not exact_match("theanswer", ["answer"])


def test_demonstrations_are_of_other_questions_and_of_each_kind():
    examples = [example(i // 2, sub_context=f"it is B{i // 2}, {i}") for i in range(12)]
    found = list(with_demonstrations(examples, shots=3))
    assert len(found) == 36 and found == list(with_demonstrations(examples, shots=3))
    for i, conflict in enumerate(found):
        asked = [shown.question for shown in conflict.demonstrations]
        assert conflict.question == f"who {i // 6}" and conflict.question not in asked and len(set(asked)) == 3
        for shown in conflict.demonstrations:
            context, answer = {0: "BB", 1: "BA", 2: "AA"}[i % 3]
            n = shown.question[4:]
            assert shown.context.startswith(f"it is {context}{n}") and shown.answer == f"{answer}{n}"
    assert [c.question for c in found[0].demonstrations] == [c.question for c in found[1].demonstrations]
    assert found != list(with_demonstrations(examples, shots=3, seed=1))


def test_demonstrations_are_read_as_plain_data():
    shown = Demonstration("c", "q", "a")
    assert Conflict.of(example(demonstrations=[shown]), 0) == Conflict.of(example(demonstrations=[vars(shown)]), 0)


WRONG = {
    "no mapping": (lambda: Conflict.of("who", 4), TypeError, "example 4 should be a mapping or a Conflict, got str"),
    "no question": (lambda: Conflict.of(example(question=None), 4), ValueError, "example 4: question should be text"),
    "no answers": (lambda: Conflict.of(example(org_answer=[]), 4), ValueError, "example 4: org_answer should be text"),
    "numbers": (lambda: Conflict.of(example(sub_answer=[4]), 4), ValueError, r"example 4: sub_answer.*got \[4\]"),
    "half a demonstration": (
        lambda: Conflict.of(example(demonstrations=[{"context": "c"}]), 4), ValueError, "example 4: a demonstration"),
    "unknown kind": (lambda: list(with_demonstrations([example()], kinds=["sx"])), ValueError, "kinds should be of"),
    "few questions": (
        lambda: list(with_demonstrations([example(), example()], 1)), ValueError, "need 2 different questions, got 1"),
    "no original context": (
        lambda: list(with_demonstrations([example(0), example(1, org_context="")], 1)), ValueError,
        "example 1 has no org_context"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
