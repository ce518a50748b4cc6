"""Chooses features whose effect a reader can see, by a fixed rule."""

import re
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsesteer import hooks
from sparsesteer.demo.setting import Setting, Track
from sparsesteer.demo.topics import TOPICS
from sparsesteer.edits import Edit


@dataclass(frozen=True)
class Rule:
    """How features are chosen; ``str`` is what the demonstration prints."""

    least_density: float = 1e-3
    most_density: float = 3e-2
    least_specificity: float = 0.1  # in maxima of the feature
    strengths: tuple[float, ...] = (1.5, 2.5)  # values tried, in maxima of the feature
    chosen: int = 3
    most_surprise: float = 2.0  # nats per token
    most_repetition: float = 0.1  # share of three-word sequences that came before
    new_tokens: int = 40

    def __str__(self) -> str:
        strengths = ", ".join(f"{strength:g}" for strength in self.strengths)
        return (
            f"For each of {len(TOPICS)} topics ({', '.join(TOPICS)}), of the features active on "
            f"{self.least_density:.1%} to {self.most_density:.0%} of the SAE's corpus, take the one that a short text "
            "about the topic activates most beyond the texts about the others, by at least "
            f"{self.least_specificity:.0%} of the feature's maximum on average. "
            f"Answer the prompt with each set to {strengths} times its maximum in the generated tokens, and let the "
            f"unsteered model read the answers. Show the {self.chosen} whose features are then active on most more "
            "tokens than in the unsteered answer, among answers that stay readable: a loss under the unsteered model "
            f"at most {self.most_surprise:g} nats a token above that of its own answer, and at most "
            f"{self.most_repetition:.0%} of three-word sequences repeated."
        )


@dataclass(frozen=True)
class Candidate:
    """A feature and the topic it stands for."""

    feature: int
    topic: str
    specificity: float  # mean share of its maximum on the topic's text, minus that on the other texts


@dataclass(frozen=True)
class Audition:
    """A candidate set to a value in the generated tokens, and what came of it."""

    candidate: Candidate
    value: float
    answer: str
    landed: float  # share of the answer's tokens on which the unsteered model finds the feature, less its own answer's
    surprise: float  # loss of the answer under the unsteered model minus that of its own answer, nats per token
    repetition: float  # share of three-word sequences that came before

    @property
    def edit(self) -> Edit:
        """The edit that steers."""
        return Edit.set({self.candidate.feature: self.value})


def choose_features(setting: Setting, rule: Rule, track: Track) -> list[Audition]:
    """The features that the rule picks, at most ``rule.chosen``."""
    return best(audition(setting, candidates(setting, rule), rule, track), rule)


def candidates(setting: Setting, rule: Rule) -> list[Candidate]:
    """The most specific feature of every topic that has one, no feature twice.

    Raises:
        ValueError: no feature has the density that the rule asks for.
    """
    suitable = (setting.density >= rule.least_density) & (setting.density <= rule.most_density)
    if not suitable.any():
        raise ValueError(f"no feature has a density from {rule.least_density} to {rule.most_density}")
    shares = torch.stack([_mean_share(setting, text) for text in TOPICS.values()])
    others = (shares.sum(0) - shares) / (len(TOPICS) - 1)
    specificity = (shares - others).masked_fill(~suitable, -torch.inf)
    found: dict[int, Candidate] = {}
    for topic, row in zip(TOPICS, specificity, strict=True):
        feature = int(row.argmax())
        if row[feature] >= rule.least_specificity:
            found.setdefault(feature, Candidate(feature, topic, row[feature].item()))
    return list(found.values())


def _mean_share(setting: Setting, text: str) -> Tensor:
    """Mean activation [F] on a text in units of the maxima, its first token (an attention sink) left out."""
    ids = torch.tensor([setting.tokenizer(text)["input_ids"]], device=setting.prompt_ids.device)
    return (setting.read(ids)[1][1:] / setting.maximum).nan_to_num().mean(0)


def audition(setting: Setting, chosen_from: list[Candidate], rule: Rule, track: Track) -> list[Audition]:
    """The answers of all candidates, for one strength after the other."""
    own_loss, own_codes = read_back(setting, setting.own_ids)
    heard = []
    for strength in track(rule.strengths, "Steering by each feature"):
        values = [strength * setting.maximum[candidate.feature].item() for candidate in chosen_from]
        edits = [Edit.set({c.feature: value}) for c, value in zip(chosen_from, values, strict=True)]
        for candidate, value, ids in zip(chosen_from, values, _one_edit_a_row(setting, edits, rule), strict=True):
            loss, codes = read_back(setting, ids)
            active = [(each[:, candidate.feature] > 0).float().mean().item() for each in (codes, own_codes)]
            answer = setting.text(ids)
            heard.append(Audition(candidate, value, answer, active[0] - active[1], loss - own_loss, repetition(answer)))
    return heard


def _one_edit_a_row(setting: Setting, edits: list[Edit], rule: Rule) -> list[list[int]]:
    """Greedy answers of one batch in which row i is steered by edit i alone."""
    with ExitStack() as steering:
        for row, edit in enumerate(edits):
            strength = F.one_hot(torch.tensor(row), len(edits)).float()
            plan = setting.sae.plan(edit)
            steering.enter_context(hooks.steer(setting.model, plan, strength=strength, positions="generated"))
        return setting.answers(len(edits), rule.new_tokens)


def read_back(setting: Setting, answer_ids: list[int]) -> tuple[float, Tensor]:
    """(mean next-token loss in nats, activations [T, F]) of an answer, as the unsteered model reads it."""
    answer, start = torch.tensor(answer_ids, device=setting.prompt_ids.device), setting.prompt_ids.shape[1]
    logits, codes = setting.read(torch.cat([setting.prompt_ids, answer[None]], dim=1))
    return F.cross_entropy(logits[start - 1 : -1], answer).item(), codes[start:]


def repetition(text: str) -> float:
    """Share of the three-word sequences of a text that came before in it."""
    words = re.findall(r"\w+", text.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def best(heard: list[Audition], rule: Rule) -> list[Audition]:
    """The readable auditions that landed most, one a feature; among equals the least surprising."""
    readable = [a for a in heard if a.landed > 0 and a.surprise <= rule.most_surprise]
    readable = [a for a in readable if a.repetition <= rule.most_repetition]
    readable.sort(key=lambda a: (-a.landed, a.surprise, a.candidate.feature))
    of_feature: dict[int, Audition] = {}
    for a in readable:
        of_feature.setdefault(a.candidate.feature, a)
    return list(of_feature.values())[: rule.chosen]
