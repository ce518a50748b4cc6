"""The same prompt answered unsteered, steered by a feature, and steered by a random feature of equal norm."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsesteer import hooks
from sparsesteer.demo.choose import Audition
from sparsesteer.demo.setting import Setting
from sparsesteer.plans import SteeringPlan


@dataclass(frozen=True)
class Comparison:
    """Three greedy answers to one prompt."""

    prompt: str
    unsteered: str
    steered: str
    control_feature: int
    control: str


def compare(setting: Setting, chosen: Audition, control_feature: int) -> Comparison:
    """Put the answer of a chosen feature beside the unsteered one and that of ``control_feature``."""
    plan = setting.sae.plan(chosen.edit)
    texts = []
    for each in (plan, control_plan(plan, setting.sae.whole_decoder()[0][control_feature])):
        with hooks.steer(setting.model, each, positions="generated"):
            texts.append(setting.text(setting.answers(1, len(setting.own_ids))[0]))
    return Comparison(setting.prompt, setting.own_text, texts[0], control_feature, texts[1])


def control_plan(plan: SteeringPlan, row: Tensor) -> SteeringPlan:
    """The edit of a plan with one feature, written along another decoder row [D] scaled to the same norm: of the
    same hidden state both make a change of the same length."""
    return replace(plan, decoder=(row.to(plan.decoder) * plan.decoder.norm() / row.norm())[None])


def random_feature(density: Tensor, other_than: list[int], seed: int) -> int:
    """A feature that lives (density [F] above 0) and is none of ``other_than``."""
    alive = density > 0
    alive[other_than] = False
    features = alive.nonzero()[:, 0]
    return int(features[torch.randint(len(features), (1,), generator=torch.Generator().manual_seed(seed))])
