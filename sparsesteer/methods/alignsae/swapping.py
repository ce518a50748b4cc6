"""Swaps over many questions: plans steered, answers judged strictly, leniently and by category."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from sparsesteer.hooks import steer
from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.matching import lenient_match, strict_match
from sparsesteer.methods.evaluation.scores import Measured, share
from sparsesteer.plans import SteeringPlan

MakePlan = Callable[[int, int], SteeringPlan]
PLANS_AT_A_TIME = 40


class Asked(Protocol):
    """A question about an entity, and what is right for every concept of it."""

    @property
    def prompt(self) -> str: ...

    @property
    def concept(self) -> int: ...

    @property
    def answers(self) -> Sequence[str | None]: ...

    @property
    def entity(self) -> str: ...


@dataclass(frozen=True)
class Swap:
    """The question of a place among some, and the concept that is to be answered in place of its own."""

    question: int
    source: int
    target: int


@dataclass(frozen=True)
class Outcome:
    """What came of a swap.

    Attributes:
        strict: the answer is the target's, letter for letter.
        lenient: it is by the released rule.
        category: it is some entity's answer for the target's concept.
        kept: it is still the question's own.
    """

    question: int
    source: int
    target: int
    answer: str
    strict: bool
    lenient: bool
    category: bool
    kept: bool


def swaps_of(questions: Sequence[Asked], most: int | None = None, seed: int = 0) -> list[Swap]:
    """Every question with every other concept whose answer is another one; the same ``most`` of them for a seed."""
    found = [
        Swap(place, question.concept, target)
        for place, question in enumerate(questions)
        for target, answer in enumerate(question.answers)
        if answer is not None and answer != question.answers[question.concept]
    ]
    if most is None or most >= len(found):
        return found
    chosen = np.random.RandomState(seed).permutation(len(found))[:most]
    return [found[place] for place in sorted(chosen.tolist())]


def categories(questions: Iterable[Asked], n_concepts: int) -> list[set[str]]:
    """All answers of each concept."""
    found: list[set[str]] = [set() for _ in range(n_concepts)]
    for question in questions:
        for concept, answer in enumerate(question.answers):
            if answer is not None:
                found[concept].add(answer)
    return found


def swapped(
    answerer: Answerer,
    site: Any,
    questions: Sequence[Asked],
    swaps: Sequence[Swap],
    plan: MakePlan,
    known: Sequence[set[str]],
    batch_size: int = 256,
) -> list[Outcome]:
    """The model's answers with each swap's plan at the last token of its prompt.

    Args:
        site: where, as ``ss.steer`` takes it.
        plan: makes the plan of a source and a target.
        known: ``categories`` of the whole world.
    """
    pairs = [(swap.source, swap.target) for swap in swaps]
    prompts = [questions[swap.question].prompt for swap in swaps]
    answers = answers_under(answerer, site, prompts, pairs, plan, batch_size)
    return [judged(questions[swap.question], swap, said, known) for swap, said in zip(swaps, answers, strict=True)]


def answers_under(
    answerer: Answerer,
    site: Any,
    prompts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    plan: MakePlan,
    batch_size: int = 256,
) -> list[str]:
    """The answer to each prompt under the plan of its own pair, at its last token; many pairs share a batch."""
    order = sorted(range(len(prompts)), key=pairs.__getitem__)
    found: dict[int, str] = {}
    while order:
        some = order[:batch_size]
        kinds = sorted({pairs[place] for place in some})[:PLANS_AT_A_TIME]
        some = [place for place in some if pairs[place] in kinds]
        order = order[len(some) :]
        with ExitStack() as steering:
            for kind in kinds:
                rows = torch.tensor([float(pairs[place] == kind) for place in some], device=answerer.device)
                chosen = steer(answerer.model, {site: plan(*kind)}, rows, positions="last_prompt")
                steering.enter_context(chosen)  # a row of strength 0 is left as it is, bit for bit
            for place, answer in zip(some, answerer.together([prompts[place] for place in some]), strict=True):
                found[place] = answer
    return [found[place] for place in range(len(prompts))]


def judged(question: Asked, swap: Swap, answer: str, known: Sequence[set[str]]) -> Outcome:
    """One answer."""
    wanted, own = question.answers[swap.target], question.answers[swap.source]
    assert wanted is not None and own is not None
    return Outcome(
        **asdict(swap),
        answer=answer,
        strict=strict_match(wanted, answer),
        lenient=lenient_match(wanted, answer),
        category=answer.strip() in known[swap.target],
        kept=strict_match(own, answer),
    )


def rate(hits: Sequence[bool], entities: Sequence[str], among: Sequence[bool] | None = None) -> Measured:
    """A share with its 95 % bootstrap interval, entities drawn anew, each with all its questions."""
    counted = np.ones(len(hits), dtype=bool) if among is None else np.array(among, dtype=bool)
    return share([np.array(hits, dtype=bool)], [counted], [list(entities)])


def summary(
    outcomes: Sequence[Outcome], questions: Sequence[Asked], right: Sequence[bool] | None = None
) -> dict[str, Mapping[str, float]]:
    """Shares of the outcomes with intervals: strict, lenient, category, kept.

    Args:
        right: whether each question is answered rightly unsteered; then ``strict_of_right`` is there too.
    """
    entities = [questions[outcome.question].entity for outcome in outcomes]
    found = {
        name: rate([getattr(outcome, name) for outcome in outcomes], entities)
        for name in ("strict", "lenient", "category", "kept")
    }
    if right is not None:
        among = [right[outcome.question] for outcome in outcomes]
        found["strict_of_right"] = rate([outcome.strict for outcome in outcomes], entities, among)
    return {name: {"mean": each.mean, "low": each.low, "high": each.high, "n": each.n} for name, each in found.items()}
