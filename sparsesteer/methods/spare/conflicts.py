"""Questions whose context contradicts what a model remembers: prompts, demonstrations, whose answer was given."""

import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

CONTEXT, MEMORY, NEITHER = 1, 0, -1  # where an answer came from; as labels the authors' numbers
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SIDES = {"s": "sub", "o": "org"}


@dataclass(frozen=True)
class Demonstration:
    """A question that is answered in the prompt."""

    context: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """As it stands in a prompt."""
        return f"context: {self.context}\nquestion: {self.question}\nanswer: {self.answer}\n\n"


@dataclass(frozen=True)
class Conflict:
    """A question, a context changed so that another answer is right, and both answers; fields named as NQ-Swap's.

    Args:
        question: what is asked.
        sub_context: the context with the substituted answer, which the prompt shows.
        sub_answer: the answers that it gives, all right.
        org_answer: the answers that the model is thought to remember.
        org_context: the context before the substitution, for demonstrations.
        demonstrations: questions that are answered before it.
    """

    question: str
    sub_context: str
    sub_answer: tuple[str, ...]
    org_answer: tuple[str, ...]
    org_context: str = ""
    demonstrations: tuple[Demonstration, ...] = ()

    @classmethod
    def of(cls, example: Any, number: int) -> "Conflict":
        """From a mapping of these names; others in it are passed over.

        Raises:
            TypeError, ValueError: what is not of this form, as example ``number``.
        """
        if isinstance(example, Conflict):
            return example
        if not isinstance(example, Mapping):
            raise TypeError(f"SPARE: example {number} should be a mapping or a Conflict, got {type(example).__name__}")
        texts = {name: example.get(name) for name in ("question", "sub_context")}
        texts["org_context"] = example.get("org_context", "")
        for name, text in texts.items():
            if not isinstance(text, str):
                raise ValueError(f"SPARE: example {number}: {name} should be text, got {text!r}")
        answers = {name: _answers(example.get(name), name, number) for name in ("sub_answer", "org_answer")}
        shown = tuple(_shown(each, number) for each in example.get("demonstrations", ()))
        return cls(**texts, **answers, demonstrations=shown)  # type: ignore[arg-type]

    @property
    def prompt(self) -> str:
        """What the model goes on with; its last token is the colon."""
        before = "".join(each.text for each in self.demonstrations)
        return f"{before}context: {self.sub_context}\nquestion: {self.question}\nanswer:"

    def answered(self, answer: str) -> str:
        """The prompt with an answer, as a demonstration ends."""
        return f"{self.prompt} {answer}\n\n"

    def source_of(self, answer: str) -> int:
        """CONTEXT, MEMORY, or NEITHER, also for what both could have given."""
        of_context, of_memory = exact_match(answer, self.sub_answer), exact_match(answer, self.org_answer)
        if of_context == of_memory:
            return NEITHER
        return CONTEXT if of_context else MEMORY

    def as_json(self) -> dict:
        """All of it as plain data."""
        return asdict(self)


def with_demonstrations(
    examples: Iterable[Any], shots: int = 3, kinds: Sequence[str] = ("ss", "so", "oo"), seed: int = 42
) -> Iterator[Conflict]:
    """Every example once for each kind, behind demonstrations from the others, as the authors collect activations.

    Args:
        examples: conflicts; demonstrations of one are of other questions.
        shots: how many demonstrations, of different questions; drawn anew for each example, the same for its kinds.
        kinds: which context and which answer they have, substituted (s) or original (o).

    Raises:
        ValueError: too few questions, another kind.
    """
    conflicts = [Conflict.of(each, number) for number, each in enumerate(examples)]
    if any(len(kind) != 2 or not set(kind) <= set(_SIDES) for kind in kinds):
        raise ValueError(f"SPARE: kinds should be of ss, so, os, oo, got {list(kinds)}")
    bare = [number for number, conflict in enumerate(conflicts) if not conflict.org_context]
    if bare and any(kind[0] == "o" for kind in kinds):
        raise ValueError(
            f"SPARE: example {bare[0]} has no org_context to demonstrate with; leave out kinds with o first"
        )
    by_question: dict[str, list[Conflict]] = {}
    for conflict in conflicts:
        by_question.setdefault(conflict.question, []).append(conflict)
    questions = list(by_question)
    if shots >= len(questions):
        raise ValueError(f"SPARE: {shots} demonstrations need {shots + 1} different questions, got {len(questions)}")
    random = np.random.RandomState(seed)
    for conflict in conflicts:
        others = [question for question in questions if question != conflict.question]
        picked = [by_question[others[i]] for i in random.choice(len(others), shots, replace=False)]
        shown = [each[random.randint(len(each))] for each in picked]
        for kind in kinds:
            yield replace(conflict, demonstrations=tuple(demonstration(each, *kind) for each in shown))


def exact_match(answer: str, references: Iterable[str]) -> bool:
    """Whether an answer is one of several, but for case, accents' encoding, punctuation, articles and spaces."""
    return normalized(answer) in {normalized(reference) for reference in references}


def normalized(answer: str) -> str:
    """An answer as ``exact_match`` compares it."""
    text = unicodedata.normalize("NFD", answer).lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def demonstration(conflict: Conflict, context: str, answer: str) -> Demonstration:
    """A conflict answered, with its context and its answer substituted (s) or original (o)."""
    return Demonstration(
        getattr(conflict, f"{_SIDES[context]}_context"),
        conflict.question,
        getattr(conflict, f"{_SIDES[answer]}_answer")[0],
    )


def _shown(given: Any, number: int) -> Demonstration:
    if isinstance(given, Demonstration):
        return given
    parts = [given.get(name) for name in ("context", "question", "answer")] if isinstance(given, Mapping) else [None]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"SPARE: example {number}: a demonstration should have context, question and answer as texts, got {given!r}"
        )
    return Demonstration(*parts)


def _answers(given: Any, name: str, number: int) -> tuple[str, ...]:
    answers = (given,) if isinstance(given, str) else tuple(given or ())
    if not answers or not all(isinstance(each, str) for each in answers):
        raise ValueError(f"SPARE: example {number}: {name} should be text or a list of texts, got {given!r}")
    return answers
