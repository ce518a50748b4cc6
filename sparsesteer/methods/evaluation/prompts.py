"""What is asked: conflicts behind demonstrations that all of them share, and questions without a context."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsesteer.methods.evaluation.prefilled import PrefilledAnswerer
from sparsesteer.methods.spare.collection import tracked
from sparsesteer.methods.spare.conflicts import Conflict, demonstration, exact_match

SPLITS = ("fit", "dev", "test")
BATCH = 128


def behind_demonstrations(
    conflicts: Sequence[Conflict], pool: Sequence[Conflict], kinds: Sequence[str], seed: int
) -> list[Conflict]:
    """All conflicts behind the same demonstrations, as the authors evaluate.

    Args:
        pool: where they come from, each of another question; one that is asked itself is not told apart, so give
            conflicts of another split.
        kinds: which context and which answer each has, substituted (s) or original (o); their order is drawn as well.
        seed: of the draw.

    Raises:
        ValueError: fewer questions in the pool than kinds.
    """
    by_question = {conflict.question: conflict for conflict in pool}
    if len(by_question) < len(kinds):
        raise ValueError(
            f"{len(kinds)} demonstrations need as many different questions, the pool has {len(by_question)}"
        )
    random = np.random.RandomState(seed)
    questions = list(by_question)
    picked = [questions[place] for place in random.choice(len(questions), len(kinds), replace=False)]
    of_question: dict[str, list[Conflict]] = {question: [] for question in picked}
    for conflict in pool:
        if conflict.question in of_question:
            of_question[conflict.question].append(conflict)
    shown = tuple(
        demonstration(of_question[question][random.randint(len(of_question[question]))], *kind)
        for question, kind in zip(picked, random.permutation(list(kinds)), strict=True)
    )
    return [replace(conflict, demonstrations=shown) for conflict in conflicts]


def by_split(examples: Sequence[Mapping[str, Any]], seed: int = 42) -> dict[str, list[Conflict]]:
    """Conflicts of fit, dev and test: by the field ``split`` where examples have it, else 40, 20 and 40 % of the
    questions, drawn by ``seed``.

    Raises:
        ValueError: a split of another name, or one without examples.
    """
    found: dict[str, list[Conflict]] = {name: [] for name in SPLITS}
    questions = list(dict.fromkeys(example.get("question") for example in examples))
    order = dict(zip(questions, np.random.RandomState(seed).permutation(len(questions)), strict=True))
    for number, example in enumerate(examples):
        share = order[example.get("question")] / max(1, len(questions))
        split = example.get("split", "fit" if share < 0.4 else "dev" if share < 0.6 else "test")
        if split not in found:
            raise ValueError(f"example {number}: split should be one of {', '.join(SPLITS)}, got {split!r}")
        found[split].append(Conflict.of(example, number))
    empty = [name for name, some in found.items() if not some]
    if empty:
        raise ValueError(f"there are no examples in the split {empty[0]}, of {len(examples)} in all")
    return found


def known_closed_book(
    answerer: PrefilledAnswerer,
    examples: Sequence[Mapping[str, Any]],
    shots: int = 8,
    seed: int = 42,
    progress: bool = True,
) -> list[dict]:
    """The examples whose question the model answers as ``org_answer`` says without any context.

    Behind ``shots`` questions from the split "fit" (or from all), with their original answers; a question that is a
    demonstration itself is asked behind the others.
    """
    asked = {example["question"]: Conflict.of(example, number) for number, example in enumerate(examples)}
    shown = [example["question"] for example in examples if example.get("split", "fit") == "fit"]
    random = np.random.RandomState(seed)
    drawn = list(random.permutation(list(dict.fromkeys(shown))))[: shots + 1]
    known = set()
    by_length = sorted(asked.values(), key=answerer.answer_length)
    for some in tracked(list(_batches(by_length, BATCH)), "asking without context", progress):
        shown_to = [[asked[q] for q in drawn if q != conflict.question][:shots] for conflict in some]
        prompts = [_closed_book(conflict, others) for conflict, others in zip(some, shown_to, strict=True)]
        answerer.prepare(prompts)
        for conflict, answer in zip(some, answerer.read(answerer.begun(prompts), answerer.room(some))[0], strict=True):
            if exact_match(answer, conflict.org_answer):
                known.add(conflict.question)
    return [dict(example) for example in examples if example["question"] in known]


def _closed_book(conflict: Conflict, shown: Iterable[Conflict]) -> str:
    before = "".join(f"question: {each.question}\nanswer: {each.org_answer[0]}\n\n" for each in shown)
    return f"{before}question: {conflict.question}\nanswer:"


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
