"""What swaps are compared with: edits of the same size elsewhere, and how much else they change."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from sparsesteer.methods.alignsae.alignsae import AlignSAE
from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.interventions import swap_plan
from sparsesteer.methods.alignsae.matching import strict_match
from sparsesteer.methods.alignsae.swapping import Asked, MakePlan, answers_under
from sparsesteer.plans import SteeringPlan


def random_slot(aligned: AlignSAE, alpha: float, form: str, seed: int = 0) -> MakePlan:
    """Swaps into a slot that is neither the source's nor the target's, drawn once for each pair."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[tuple[int, int], int] = {}

    def plan(source: int, target: int) -> SteeringPlan:
        if (source, target) not in drawn:
            others = [c for c in range(aligned.n_concepts) if c not in (source, target)]
            drawn[source, target] = others[int(torch.randint(len(others), (), generator=generator))]
        return aligned.plan(source, drawn[source, target], alpha, form)

    return plan


def random_direction(aligned: AlignSAE, alpha: float, seed: int = 0) -> MakePlan:
    """The slot edit with every slot's decoder row turned to a direction of chance, its length kept."""
    first = aligned.feature(0)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(aligned.n_concepts, aligned.sae.d_in, generator=generator)

    def plan(source: int, target: int) -> SteeringPlan:
        made = swap_plan(aligned.sae, first + source, first + target, alpha)
        turned = rows[(made.features - first).cpu()].to(made.decoder)
        lengths = made.decoder.norm(dim=-1, keepdim=True) / turned.norm(dim=-1, keepdim=True)
        return replace(made, decoder=turned * lengths)

    return plan


def damaged(
    answerer: Answerer,
    site: Any,
    questions: Sequence[Asked],
    right: Sequence[bool],
    plan: Callable[[int, int], SteeringPlan],
    n_concepts: int,
    batch_size: int = 256,
) -> list[tuple[int, bool]]:
    """Questions that a swap has nothing to do with, asked while it is in place: (question, whether it turned wrong).

    Every question that is answered rightly unsteered is asked under one swap between two other concepts, a pair that
    goes round with the question's place.
    """
    asked, pairs = [], []
    for place, question in enumerate(questions):
        if right[place]:
            others = [c for c in range(n_concepts) if c != question.concept]
            known = [(s, t) for s in others for t in others if s != t]
            asked.append(place)
            pairs.append(known[place % len(known)])
    answers = answers_under(answerer, site, [questions[place].prompt for place in asked], pairs, plan, batch_size)
    return [(place, not strict_match(_own(questions[place]), said)) for place, said in zip(asked, answers, strict=True)]


def _own(question: Asked) -> str:
    answer = question.answers[question.concept]
    assert answer is not None
    return answer
