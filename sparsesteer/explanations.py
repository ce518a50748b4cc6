"""Words that explain the features of an SAE: one small file beside the weights, read by feature and by word."""

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsesteer.files import DescribedTensors
from sparsesteer.word_index import DESCRIBED_BY, FILE_NAME, Match, Notes, ScoredWord, WordIndex

__all__ = ["FILE_NAME", "Explanations", "Match", "ScoredWord", "load_for"]

_FILE = DescribedTensors(DESCRIBED_BY, "a file of explanations", "Explanations.save(path)", version=1)


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
    density: Tensor | None = None  # fp32 [F], share of a corpus' tokens at which a feature is active
    notes: Notes | None = None  # for each feature a mapping: its label, summary, contexts

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
        for name, part in (("density", self.density), ("notes", self.notes)):
            if part is not None and len(part) != len(self):
                raise ValueError(f"Explanations: {name} should be of {len(self)} features, got {len(part)}")

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
        return self.index[feature]

    def search(self, text: str) -> list[Match]:
        """The features whose explanation has every word of a text, upper or lower case, strongest first.

        Raises:
            ValueError: a text without words.
        """
        return self.index.search(text)

    def feature(self, text: str) -> int:
        """The one feature whose explanation has every word of a text.

        Raises:
            ValueError: none, or several, which are listed.
        """
        return self.index.feature(text)

    def note(self, feature: int) -> dict[str, Any]:
        """What else is known of a feature: label, summary, contexts. Nothing where nothing is."""
        return {} if self.notes is None else self.notes[feature]

    def with_notes(self, notes: Sequence[Mapping[str, Any]], density: Tensor | None = None) -> "Explanations":
        """The same with one mapping for each feature added to what is noted of it, and densities [F] if given.

        Raises:
            ValueError: another number of features.
        """
        if len(notes) != len(self):
            raise ValueError(f"Explanations: notes should be of {len(self)} features, got {len(notes)}")
        joined = Notes.of(self.note(feature) | dict(note) for feature, note in enumerate(notes))
        known = self.density if density is None else density.float().cpu()
        return replace(self, notes=joined, density=known)

    @functools.cached_property
    def index(self) -> WordIndex:
        """What looks features and words up."""
        words, starts = self.words.int().numpy().tobytes(), self.starts.tolist()
        return WordIndex(self.vocabulary, words, self.scores.tolist(), starts)

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file, what made it in the header; returns the path."""
        tensors = {
            "vocabulary": _bytes("\n".join(self.vocabulary).encode()),
            "words": self.words.int(),
            "scores": self.scores,
            "starts": self.starts.int(),
        }
        if self.density is not None:
            tensors["density"] = self.density
        if self.notes is not None:
            tensors["notes"] = _bytes(bytes(self.notes.data))
            tensors["note_starts"] = torch.tensor(self.notes.starts, dtype=torch.int64)
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
            more: dict[str, Any] = {"density": tensors.get("density")}
            if "notes" in tensors:
                more["notes"] = Notes(bytes(tensors["notes"].numpy()), tensors["note_starts"].tolist())
            return cls(vocabulary, words, tensors["scores"].float(), starts, **description, **more)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold complete explanations: {error!r}") from error


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)


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
