"""How an edit's strength moves the next-token probabilities, as numbers and as a picture."""

import os
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsesteer import hooks
from sparsesteer.demo.choose import Audition
from sparsesteer.demo.setting import Setting, Track
from sparsesteer.logit_lens import word_tokens, words_of
from sparsesteer.plans import SteeringPlan

PICTURE = "strength.png"
N_WORDS = 10  # raised words whose probability is drawn
STRENGTHS = tuple(i / 8 for i in range(17))


@dataclass(frozen=True)
class StrengthCurve:
    """Effect of one plan at STRENGTHS, means over the answer's tokens."""

    label: str
    raised_mass: tuple[float, ...]  # probability of the words together
    divergence: tuple[float, ...]  # KL(steered || unsteered) of the next token, nats


@torch.no_grad()
def strength_curve(
    model: nn.Module,
    plan: SteeringPlan,
    label: str,
    ids: Tensor,  # [1, T], prompt and answer
    answer_start: int,
    words: Tensor,  # int64 [k], token ids
) -> StrengthCurve:
    """Steer a given answer at every strength and read the next-token distribution along it."""
    unsteered = model(ids, use_cache=False).logits[0, answer_start:].log_softmax(-1)
    mass, divergence = [], []
    for strength in STRENGTHS:
        with hooks.steer(model, plan, strength=strength, positions=slice(answer_start, None)):
            steered = model(ids, use_cache=False).logits[0, answer_start:].log_softmax(-1)
        mass.append(steered[:, words].exp().sum(-1).mean().item())
        divergence.append((steered.exp() * (steered - unsteered)).sum(-1).mean().item())
    return StrengthCurve(label, tuple(mass), tuple(divergence))


@torch.no_grad()
def raised_words(model: nn.Module, plan: SteeringPlan, ids: Tensor, answer_start: int, words: Tensor, k: int) -> Tensor:
    """Ids [k] of those of the ``words`` whose mean probability along an answer the plan raises most."""
    unsteered = model(ids, use_cache=False).logits[0, answer_start:].softmax(-1).mean(0)
    with hooks.steer(model, plan, positions=slice(answer_start, None)):
        steered = model(ids, use_cache=False).logits[0, answer_start:].softmax(-1).mean(0)
    return words[(steered - unsteered)[words].topk(min(k, len(words))).indices]


def plot(setting: Setting, chosen: list[Audition], folder: Path, track: Track) -> str:
    """Draw all chosen edits along the model's own answer; returns a sentence on where, or why not."""
    if util.find_spec("matplotlib") is None:
        return "The picture is left out: pip install matplotlib"
    curves = []
    start = setting.prompt_ids.shape[1]
    words = word_tokens(setting.tokenizer, shortest=4).to(setting.prompt_ids.device)
    for audition in track(chosen, "Strengths"):
        plan, candidate = setting.sae.plan(audition.edit), audition.candidate
        raised = raised_words(setting.model, plan, setting.whole_ids, start, words, N_WORDS)
        label = f"{candidate.topic} ({candidate.feature}): {', '.join(words_of(setting.tokenizer, raised[:3]))} ..."
        curves.append(strength_curve(setting.model, plan, label, setting.whole_ids, start, raised))
    draw(curves, folder / PICTURE)
    return (
        f"Strength against effect on the next token, mean over the unsteered answer: {folder / PICTURE}\n"
        f"(probability of the {N_WORDS} words that each edit raises most at strength 1; KL divergence from unsteered)"
    )


def draw(curves: list[StrengthCurve], path: Path) -> None:
    """Write the curves as PNG; a half-written file never has the final name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for curve in curves:
        left.plot(STRENGTHS, curve.raised_mass, marker=".", label=curve.label)
        right.plot(STRENGTHS, curve.divergence, marker=".", label=curve.label)
    left.set_ylabel("probability of the raised words")
    right.set_ylabel("KL(steered || unsteered), nats")
    for axes in (left, right):
        axes.set_xlabel("strength (1 = the edit as shown)")
        axes.axvline(1.0, color="0.8", zorder=0)
        axes.set_ylim(bottom=0)
    left.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished.png")
    figure.savefig(unfinished, dpi=150)
    os.replace(unfinished, path)
