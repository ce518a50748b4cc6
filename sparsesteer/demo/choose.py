"""Chooses features whose effect a reader can see, by a fixed rule."""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsesteer import hooks
from sparsesteer.demo.setting import Setting, Track
from sparsesteer.edits import Edit
from sparsesteer.logit_lens import promoted_tokens, word_tokens, words_of

STEM = 4  # words that agree in so many letters count as forms of one word
SHARED_DIRECTIONS = 8  # of embeddings: frequency, capitals; not what a word means


@dataclass(frozen=True)
class Rule:
    """How features are chosen; ``str`` is what the demonstration prints."""

    least_density: float = 1e-3
    most_density: float = 3e-2
    likened: int = 10  # promoted words compared with each other
    counted: int = 40  # promoted words looked for in an answer
    shortlist: int = 16
    strengths: tuple[float, ...] = (1.0, 1.5, 2.0)  # values tried, in maxima of the feature
    chosen: int = 3
    largest_overlap: float = 0.3  # cosine between the decoder rows of two features
    most_surprise: float = 1.0  # nats per token
    most_repetition: float = 0.1  # share of three-word sequences that came before
    new_tokens: int = 48

    def __str__(self) -> str:
        strengths = ", ".join(f"{strength:g}" for strength in self.strengths)
        return (
            f"A feature's words are those that its decoder row promotes most, read through final norm and unembedding "
            f"(forms of a word counted once). Of the features active on {self.least_density:.1%} to "
            f"{self.most_density:.0%} of the corpus, take the {self.shortlist} whose first {self.likened} words are "
            f"most alike (mean cosine of their embeddings), no two with decoder rows of a cosine above "
            f"{self.largest_overlap:g}. Answer the prompt with each set to {strengths} times its maximum in the "
            f"generated tokens. Show the {self.chosen} whose answers use most of their first {self.counted} words "
            "that the unsteered answer lacks, among answers that stay readable: loss under the unsteered model at "
            f"most {self.most_surprise:g} nats a token above that of its own answer, and at most "
            f"{self.most_repetition:.0%} of the three-word sequences repeated."
        )


@dataclass(frozen=True)
class Candidate:
    """A feature and the words it promotes, best first."""

    feature: int
    words: tuple[str, ...]
    likeness: float  # mean cosine between the embeddings of the first of them


@dataclass(frozen=True)
class Audition:
    """A candidate set to a value in the generated tokens, and what came of it."""

    candidate: Candidate
    value: float
    answer: str
    used: tuple[str, ...]  # promoted words in the answer that the unsteered answer lacks
    surprise: float  # loss of the answer under the unsteered model minus that of its own answer, nats per token
    repetition: float  # share of three-word sequences that came before

    @property
    def edit(self) -> Edit:
        """The edit that steers."""
        return Edit.set({self.candidate.feature: self.value})


def choose_features(setting: Setting, rule: Rule, track: Track) -> list[Audition]:
    """The features that the rule picks, at most ``rule.chosen``."""
    return best(audition(setting, shortlist(setting, rule), rule, track), rule)


@torch.no_grad()
def shortlist(setting: Setting, rule: Rule) -> list[Candidate]:
    """The candidates whose words are most alike, best first.

    Raises:
        ValueError: no feature has the density that the rule asks for.
    """
    density, decoder = setting.density, setting.sae.whole_decoder()[0]
    features = ((density >= rule.least_density) & (density <= rule.most_density)).nonzero()[:, 0]
    if len(features) == 0:
        raise ValueError(f"no feature has a density from {rule.least_density} to {rule.most_density}")
    words, meanings = vocabulary(setting)
    directions = decoder[features].to(words.device)
    promoted = promoted_tokens(setting.model, directions, min(2 * rule.counted, len(words)), words)
    found = []
    for feature, ids in zip(features.tolist(), promoted, strict=True):
        distinct = distinct_words(words_of(setting.tokenizer, ids))[: rule.counted]
        first = ids[[position for position, _ in distinct[: rule.likened]]]
        likeness = mean_cosine(meanings[torch.searchsorted(words, first)])
        found.append(Candidate(feature, tuple(word for _, word in distinct), likeness))
    found.sort(key=lambda candidate: (-candidate.likeness, candidate.feature))
    return _diverse(found, decoder, rule)


def vocabulary(setting: Setting) -> tuple[Tensor, Tensor]:
    """(ids [W] of words, ascending, their embeddings [W, D] of length 1 without what all words share).

    Pieces that a model never writes ("dissemin") are left out: they have long, nearly equal unembedding rows. So
    is the half of the words with the longest.
    """
    words = word_tokens(setting.tokenizer, shortest=4).to(setting.prompt_ids.device)
    rows = setting.model.get_output_embeddings().weight[words].float()  # type: ignore[operator]
    lengths = rows.norm(dim=-1)
    words, rows = words[lengths <= lengths.median()], rows[lengths <= lengths.median()]
    rows = rows - rows.mean(0)
    shared = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -SHARED_DIRECTIONS:]
    return words, F.normalize(rows - rows @ shared @ shared.T, dim=-1)


def mean_cosine(unit_rows: Tensor) -> float:
    """Over all pairs of different rows [n, D] of length 1; 0 for a single row."""
    n = len(unit_rows)
    return ((unit_rows.sum(0).square().sum() - n) / max(n * (n - 1), 1)).item()


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
    """Every candidate's answers to the prompt, in order."""
    own_loss, own_stems = _loss(setting, setting.own_ids), _stems(setting.own_text)
    heard = []
    trials = [(candidate, strength) for candidate in candidates for strength in rule.strengths]
    for candidate, strength in track(trials, "Trying features"):
        value = strength * setting.maximum[candidate.feature].item()
        plan = setting.sae.plan(Edit.set({candidate.feature: value}))
        with hooks.steer(setting.model, plan, positions="generated"):
            ids = setting.answer(rule.new_tokens)
        answer = setting.text(ids)
        new_stems = _stems(answer) - own_stems
        heard.append(
            Audition(
                candidate=candidate,
                value=value,
                answer=answer,
                used=tuple(word for word in candidate.words if _stem(word) in new_stems),
                surprise=_loss(setting, ids) - own_loss,
                repetition=repetition(answer),
            )
        )
    return heard


def best(heard: list[Audition], rule: Rule) -> list[Audition]:
    """The readable auditions that use most promoted words, one a feature; among equals the least surprising."""
    readable = [a for a in heard if a.used and a.surprise <= rule.most_surprise]
    readable = [a for a in readable if a.repetition <= rule.most_repetition]
    readable.sort(key=lambda a: (-len(a.used), a.surprise, a.candidate.feature))
    of_feature: dict[int, Audition] = {}
    for a in readable:
        of_feature.setdefault(a.candidate.feature, a)
    return list(of_feature.values())[: rule.chosen]


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
