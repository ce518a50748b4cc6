"""Chooses features whose effect a reader can see, by a fixed rule."""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsesteer import hooks
from sparsesteer.demo.promotion import gained_probability, open_places
from sparsesteer.demo.setting import Setting, Track
from sparsesteer.edits import Edit
from sparsesteer.logit_lens import word_tokens, words_of

STEM = 4  # words that agree in so many letters count as forms of one word


@dataclass(frozen=True)
class Rule:
    """How features are chosen; ``str`` is what the demonstration prints."""

    least_density: float = 1e-3
    most_density: float = 3e-2
    strongest: int = 192
    strength: float = 1.5  # values are set to this many maxima
    places: int = 2
    promoted: int = 10  # words that rank a feature
    counted: int = 40  # words looked for in an answer
    shortlist: int = 12
    chosen: int = 3
    largest_overlap: float = 0.3  # cosine between the decoder rows of two features
    most_surprise: float = 1.0  # nats per token
    most_repetition: float = 0.1  # share of three-word sequences that came before
    new_tokens: int = 48

    def __str__(self) -> str:
        return (
            f"Of the features active on {self.least_density:.1%} to {self.most_density:.0%} of the corpus, take the "
            f"{self.strongest} with the largest change of the residual stream at their maximum. Write each, at "
            f"{self.strength:g} times its maximum, to the {self.places} tokens of the model's own answer after which "
            f"it is least certain, and keep the {self.shortlist} whose {self.promoted} most favoured words gain most "
            "probability together (forms of a word counted once; no two features with decoder rows of a cosine above "
            f"{self.largest_overlap:g}). Answer the prompt with each of these set to that value in the generated "
            f"tokens. Show the {self.chosen} answers with most different favoured words that the unsteered answer "
            f"lacks, among answers whose loss under the unsteered model is at most {self.most_surprise:g} nats a token "
            f"above that of its own answer, and of whose three-word sequences at most {self.most_repetition:.0%} "
            "repeat."
        )


@dataclass(frozen=True)
class Candidate:
    """A feature and the words it favours, best first."""

    feature: int
    value: float
    words: tuple[str, ...]
    gain: float  # probability that the first of the words gain together, at the places looked at


@dataclass(frozen=True)
class Audition:
    """A candidate set to its value in the generated tokens, and what came of it."""

    candidate: Candidate
    answer: str
    used: tuple[str, ...]  # favoured words in the answer that the unsteered answer lacks
    surprise: float  # loss of the answer under the unsteered model minus that of its own answer, nats per token
    repetition: float  # share of three-word sequences that came before

    @property
    def edit(self) -> Edit:
        """The edit that steers."""
        return Edit.set({self.candidate.feature: self.candidate.value})


def choose_features(setting: Setting, rule: Rule, track: Track) -> list[Audition]:
    """The features that the rule picks, at most ``rule.chosen``."""
    return best(audition(setting, shortlist(setting, rule, track), rule, track), rule)


def shortlist(setting: Setting, rule: Rule, track: Track) -> list[Candidate]:
    """The candidates whose words gain most, best first.

    Raises:
        ValueError: no feature has the density that the rule asks for.
    """
    density = setting.density
    features = ((density >= rule.least_density) & (density <= rule.most_density)).nonzero()[:, 0]
    if len(features) == 0:
        raise ValueError(f"no feature has a density from {rule.least_density} to {rule.most_density}")
    changes = rule.strength * setting.maximum[features, None] * setting.sae.whole_decoder()[0][features]
    order = changes.norm(dim=-1).topk(min(rule.strongest, len(features))).indices
    features, changes = features[order], changes[order]
    device = setting.prompt_ids.device
    ids, words = setting.whole_ids, word_tokens(setting.tokenizer).to(device)
    places = open_places(setting.model, ids, setting.prompt_ids.shape[1], rule.places)
    gained = gained_probability(setting.model, setting.block, changes.to(device), ids, places, words, track)
    found = []
    for feature, gains in zip(features.tolist(), gained, strict=True):
        top = gains.topk(min(2 * rule.counted, len(words)))
        distinct = distinct_words(words_of(setting.tokenizer, words[top.indices]))[: rule.counted]
        gain = top.values[[position for position, _ in distinct[: rule.promoted]]].sum().item()
        value = rule.strength * setting.maximum[feature].item()
        found.append(Candidate(feature, value, tuple(word for _, word in distinct), gain))
    found.sort(key=lambda candidate: (-candidate.gain, candidate.feature))
    return _diverse(found, setting.sae.whole_decoder()[0], rule)


def _stem(word: str) -> str:
    return word.lower()[:STEM]


def distinct_words(words: list[str]) -> list[tuple[int, str]]:
    """(position, word) of words that do not begin as an earlier one does: forms of one word count once."""
    stems: set[str] = set()
    kept = []
    for position, word in enumerate(words):
        if _stem(word) not in stems:
            stems.add(_stem(word))
            kept.append((position, word))
    return kept


def _diverse(candidates: list[Candidate], decoder: Tensor, rule: Rule) -> list[Candidate]:
    kept: list[Candidate] = []
    for candidate in candidates:
        row, others = decoder[candidate.feature], decoder[[other.feature for other in kept]]
        if not kept or F.cosine_similarity(others, row[None]).max() <= rule.largest_overlap:
            kept.append(candidate)
    return kept[: rule.shortlist]


def audition(setting: Setting, candidates: list[Candidate], rule: Rule, track: Track) -> list[Audition]:
    """Every candidate's answer to the prompt, in order."""
    own_loss, own_stems = _loss(setting, setting.own_ids), _stems(setting.own_text)
    heard = []
    for candidate in track(candidates, "Trying features"):
        plan = setting.sae.plan(Edit.set({candidate.feature: candidate.value}))
        with hooks.steer(setting.model, plan, positions="generated"):
            ids = setting.answer(rule.new_tokens)
        answer = setting.text(ids)
        new_stems = _stems(answer) - own_stems
        heard.append(
            Audition(
                candidate=candidate,
                answer=answer,
                used=tuple(word for word in candidate.words if _stem(word) in new_stems),
                surprise=_loss(setting, ids) - own_loss,
                repetition=repetition(answer),
            )
        )
    return heard


def best(heard: list[Audition], rule: Rule) -> list[Audition]:
    """The readable auditions that use most favoured words; among equals the least surprising."""
    readable = [a for a in heard if a.surprise <= rule.most_surprise and a.repetition <= rule.most_repetition]
    return sorted(readable, key=lambda a: (-len(a.used), a.surprise, a.candidate.feature))[: rule.chosen]


@torch.no_grad()
def _loss(setting: Setting, answer_ids: list[int]) -> float:
    """Mean next-token loss of an answer under the unsteered model, nats."""
    answer = torch.tensor(answer_ids, device=setting.prompt_ids.device)
    logits = setting.model(torch.cat([setting.prompt_ids, answer[None]], dim=1), use_cache=False).logits
    return F.cross_entropy(logits[0, setting.prompt_ids.shape[1] - 1 : -1].float(), answer).item()


def repetition(text: str) -> float:
    """Share of the three-word sequences of a text that came before in it."""
    words = re.findall(r"\w+", text.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in re.findall(r"[A-Za-z]{3,}", text)}
