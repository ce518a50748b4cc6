"""Words that explain the features of an SAE: one small file beside the weights, read by feature and by word."""

import difflib
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsesteer.files import DescribedTensors

FILE_NAME = "explanations.safetensors"
_FILE = DescribedTensors("sparsesteer.explanations", "a file of explanations", "Explanations.save(path)", version=1)
_SHOWN = 8


@dataclass(frozen=True)
class ScoredWord:
    """A word of a feature's explanation; a larger score is stronger, in the method's own units."""

    word: str
    score: float


@dataclass(frozen=True)
class Match:
    """A feature whose explanation has all the words that were looked for; ``score`` is the sum of theirs."""

    feature: int
    score: float
    words: tuple[ScoredWord, ...]  # the whole explanation, best first

    def __str__(self) -> str:
        return f"{self.feature} ({', '.join(scored.word for scored in self.words)})"


@dataclass(frozen=True, eq=False)
class Explanations:
    """For each of F features the words that explain it, best first, as one method found them.

    Made by ``of``; stored flat, E words in all, so that reading a file builds no list per feature.
    """

    vocabulary: tuple[str, ...]
    words: Tensor  # int64 [E], places in the vocabulary
    scores: Tensor  # fp32 [E], falling within a feature
    starts: Tensor  # int64 [F + 1], where each feature's words begin
    method: str
    method_version: str
    model: str | None = None
    about: str = ""  # what the scores are and how far to trust them
    details: dict[str, Any] = field(default_factory=dict)  # whatever else the method records, as JSON

    def __post_init__(self) -> None:
        """Raises ValueError for parts that disagree."""
        count = len(self.words)
        if self.words.dim() != 1 or self.words.dtype != torch.int64 or self.starts.dtype != torch.int64:
            raise ValueError("Explanations: words and starts should be int64 vectors")
        if self.scores.shape != self.words.shape or not torch.isfinite(self.scores).all():
            raise ValueError(f"Explanations: scores should be {count} finite numbers, one for each word")
        if self.starts.dim() != 1 or len(self.starts) < 1 or self.starts[0] != 0 or self.starts[-1] != count:
            raise ValueError(f"Explanations: starts should go from 0 to {count}, the number of words")
        if (self.starts.diff() < 0).any():
            raise ValueError("Explanations: starts should not fall")
        owner = torch.repeat_interleave(self.starts.diff())
        if ((self.scores.diff() > 0) & (owner.diff() == 0)).any():
            raise ValueError("Explanations: the scores of a feature's words should fall")
        for name in ("method", "method_version", "about"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"Explanations: {name} should be text, got {getattr(self, name)!r}")
        if count and not 0 <= int(self.words.min()) <= int(self.words.max()) < len(self.vocabulary):
            raise ValueError(f"Explanations: a word is outside the vocabulary of {len(self.vocabulary)}")

    @classmethod
    def of(
        cls,
        lists: Iterable[Sequence[tuple[str, float]]],
        *,
        method: str,
        method_version: str,
        model: str | None = None,
        about: str = "",
        details: dict[str, Any] | None = None,
    ) -> "Explanations":
        """From one list of (word, score) a feature, in any order.

        Raises:
            ValueError: a word that is empty, has a line break, or stands in a feature's list twice.
        """
        places: dict[str, int] = {}
        words: list[int] = []
        scores: list[float] = []
        starts = [0]
        for feature, scored in enumerate(lists):
            _check_words([word for word, _ in scored], feature)
            for word, score in sorted(scored, key=lambda pair: -pair[1]):
                words.append(places.setdefault(word, len(places)))
                scores.append(score)
            starts.append(len(words))
        return cls(
            tuple(places),
            torch.tensor(words, dtype=torch.int64),
            torch.tensor(scores, dtype=torch.float32),
            torch.tensor(starts, dtype=torch.int64),
            method,
            method_version,
            model,
            about,
            details or {},
        )

    def __len__(self) -> int:
        """F, the number of features, explained or not."""
        return len(self.starts) - 1

    def __repr__(self) -> str:
        return f"Explanations(F={len(self)}, {len(self.words)} words by {self.method} {self.method_version})"

    def __getitem__(self, feature: int) -> tuple[ScoredWord, ...]:
        """The words of one feature, best first. Raises IndexError for a feature that is not there."""
        if not 0 <= feature < len(self):
            raise IndexError(f"feature {feature} is out of range, there are explanations of 0 to {len(self) - 1}")
        first, last = self.starts[feature : feature + 2].tolist()
        pairs = zip(self.words[first:last].tolist(), self.scores[first:last].tolist(), strict=True)
        return tuple(ScoredWord(self.vocabulary[word], score) for word, score in pairs)

    def search(self, text: str) -> list[Match]:
        """The features whose explanation has every word of a text, upper or lower case, strongest first.

        Raises:
            ValueError: a text without words.
        """
        wanted = text.casefold().split()
        if not wanted:
            raise ValueError("no word to look for")
        common: dict[int, float] | None = None
        for word in wanted:
            found = self._features_with(word)
            common = found if common is None else {f: common[f] + s for f, s in found.items() if f in common}
        ranked = sorted((common or {}).items(), key=lambda pair: (-pair[1], pair[0]))
        return [Match(feature, score, self[feature]) for feature, score in ranked]

    def feature(self, text: str) -> int:
        """The one feature whose explanation has every word of a text.

        Raises:
            ValueError: none, or several, which are listed.
        """
        found = self.search(text)
        if len(found) == 1:
            return found[0].feature
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise ValueError(
                f"{text!r} stands in the explanations of {len(found)} features; name one by its number, or add a word "
                f"of it: {'; '.join(map(str, found[:_SHOWN]))}{more}"
            )
        close = difflib.get_close_matches(text.casefold(), self._index, n=4)
        raise ValueError(
            f"{text!r} stands in no feature's explanation" + (f"; close to it: {', '.join(close)}" if close else "")
        )

    def _features_with(self, word: str) -> dict[int, float]:
        """feature -> score, of the features whose explanation has a word, given in lower case."""
        places = torch.tensor(self._index.get(word, []), dtype=torch.int64)
        at = torch.isin(self.words, places).nonzero().flatten()
        features = torch.searchsorted(self.starts, at, right=True) - 1
        best: dict[int, float] = {}
        for feature, score in zip(features.tolist(), self.scores[at].tolist(), strict=True):
            best[feature] = max(score, best.get(feature, score))
        return best

    @functools.cached_property
    def _index(self) -> dict[str, list[int]]:
        """Lower-case word -> its places in the vocabulary; an entry of several words stands under each."""
        index: dict[str, list[int]] = {}
        for place, entry in enumerate(self.vocabulary):
            for word in set(entry.casefold().split()):
                index.setdefault(word, []).append(place)
        return index

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file, what made it in the header; returns the path."""
        tensors = {
            "vocabulary": torch.frombuffer(bytearray("\n".join(self.vocabulary).encode()), dtype=torch.uint8)
            if self.vocabulary
            else torch.zeros(0, dtype=torch.uint8),
            "words": self.words.int(),
            "scores": self.scores,
            "starts": self.starts.int(),
        }
        description = {
            "method": self.method,
            "method_version": self.method_version,
            "model": self.model,
            "about": self.about,
            "details": self.details,
        }
        return _FILE.save(path, description, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Explanations":
        """Read a file of ``save``. Raises ValueError for anything else, FileNotFoundError if there is none."""
        description, tensors = _FILE.load(path)
        try:
            joined = bytes(tensors["vocabulary"].numpy()).decode()
            vocabulary = tuple(joined.split("\n")) if joined else ()
            words, starts = tensors["words"].long(), tensors["starts"].long()
            return cls(vocabulary, words, tensors["scores"].float(), starts, **description)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold complete explanations: {error!r}") from error


def load_for(path: Path, n_features: int) -> Explanations:
    """The explanations that lie beside an SAE of F features. Raises ValueError if they are of another number."""
    found = Explanations.load(path)
    if len(found) != n_features:
        raise ValueError(f"{path} explains {len(found)} features, but the SAE beside it has {n_features}")
    return found


def _check_words(words: list[str], feature: int) -> None:
    for word in words:
        if not isinstance(word, str) or not word.strip() or "\n" in word:
            raise ValueError(f"Explanations: a word of feature {feature} should be text on one line, got {word!r}")
    if len(set(words)) < len(words):
        raise ValueError(f"Explanations: a word stands twice in the list of feature {feature}")
