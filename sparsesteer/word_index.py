"""Features looked up by word in a file of explanations: without torch, and without reading more than is asked for."""

import difflib
import functools
import json
import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsesteer.plain_json import parse_json

FILE_NAME = "explanations.safetensors"
DESCRIBED_BY = "sparsesteer.explanations"  # the description's name in the header
_SHOWN = 8
_CODES = {"F32": ("f", 4), "I32": ("i", 4), "I64": ("q", 8), "U8": ("B", 1)}
_PLACE = struct.Struct("<i")


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


class Notes:
    """For each of F features a JSON object, one after the other: what else is known of it.

    Args:
        data: all of them as UTF-8, nothing for a feature without one.
        starts: [F + 1], where each begins.
    """

    def __init__(self, data: Any, starts: Sequence[int]) -> None:
        """Raises ValueError for starts that do not go from 0 to the number of bytes without falling."""
        falls = any(a > b for a, b in zip(starts, starts[1:], strict=False))
        if not len(starts) or starts[0] != 0 or starts[-1] != len(data) or falls:
            raise ValueError(f"notes should begin at places that rise from 0 to {len(data)}")
        self.data, self.starts = data, starts

    @classmethod
    def of(cls, notes: Iterable[Mapping[str, Any]]) -> "Notes":
        """From one mapping a feature."""
        texts = [json.dumps(dict(note), ensure_ascii=False).encode() if note else b"" for note in notes]
        starts = [0]
        for text in texts:
            starts.append(starts[-1] + len(text))
        return cls(b"".join(texts), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, feature: int) -> dict[str, Any]:
        """Raises ValueError for a damaged note."""
        first, last = self.starts[feature], self.starts[feature + 1]
        text = bytes(self.data[first:last])
        return parse_json(text, f"the note of feature {feature}") if text else {}


class WordIndex:
    """The words of each feature, and the features of each word.

    Args:
        vocabulary: [V] words.
        words: int32 [E] as little-endian bytes, places in the vocabulary.
        scores: [E], falling within a feature.
        starts: [F + 1], where each feature's words begin.
    """

    def __init__(self, vocabulary: Sequence[str], words: bytes, scores: Sequence[float], starts: Sequence[int]) -> None:
        self.vocabulary, self.scores, self.starts = vocabulary, scores, starts
        self._words = words

    def __len__(self) -> int:
        """F, the number of features, explained or not."""
        return len(self.starts) - 1

    def __getitem__(self, feature: int) -> tuple[ScoredWord, ...]:
        """The words of one feature, best first.

        Raises:
            IndexError: a feature that is not there.
            ValueError: a damaged file.
        """
        if not 0 <= feature < len(self):
            raise IndexError(f"feature {feature} is out of range, there are explanations of 0 to {len(self) - 1}")
        first, last = self.starts[feature], self.starts[feature + 1]
        places = [place for (place,) in _PLACE.iter_unpack(self._words[4 * first : 4 * last])]
        if places and not 0 <= min(places) <= max(places) < len(self.vocabulary):  # not of all: that takes 0.1 s
            raise ValueError(f"feature {feature} has a word outside the vocabulary of {len(self.vocabulary)}")
        return tuple(ScoredWord(self.vocabulary[p], s) for p, s in zip(places, self.scores[first:last], strict=True))

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
        close = difflib.get_close_matches(text.casefold(), self._places, n=4)
        raise ValueError(
            f"{text!r} stands in no feature's explanation" + (f"; close to it: {', '.join(close)}" if close else "")
        )

    def _features_with(self, word: str) -> dict[int, float]:
        """feature -> score, of the features whose explanation has a word, given in lower case."""
        best: dict[int, float] = {}
        for place in self._places.get(word, ()):
            for at in self._occurrences(place):
                feature, score = bisect_right(self.starts, at) - 1, self.scores[at]
                best[feature] = max(score, best.get(feature, score))
        return best

    def _occurrences(self, place: int) -> Iterable[int]:
        """Where among all E words one stands. The bytes are searched, at the speed of C: no table of it is stored."""
        wanted, at = _PLACE.pack(place), -1
        while (at := self._words.find(wanted, at + 1)) >= 0:
            if at % 4 == 0:
                yield at // 4

    @functools.cached_property
    def _places(self) -> dict[str, list[int]]:
        """Lower-case word -> its places in the vocabulary; an entry of several words stands under each."""
        index: dict[str, list[int]] = {}
        for place, entry in enumerate(self.vocabulary):
            for word in set(entry.casefold().split()):
                index.setdefault(word, []).append(place)
        return index


class ExplanationFile(WordIndex):
    """A file of ``Explanations.save``, opened for looking up.

    Attributes:
        about: what made it: method, method_version, model, about, details.
        notes: what else is known of each feature, or None.
        density: [F], the share of a corpus' tokens at which a feature is active, or None.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Raises FileNotFoundError if there is none, ValueError for anything but a whole file of explanations."""
        metadata, tensors = read_vectors(path)
        if DESCRIBED_BY not in metadata:
            raise ValueError(
                f"{path} is a safetensors file but not a file of explanations; Explanations.save writes one"
            )
        try:
            self.about = parse_json(metadata[DESCRIBED_BY], f"the description in {path}")
            joined = bytes(tensors["vocabulary"]).decode()
            words, scores, starts = tensors["words"], tensors["scores"], tensors["starts"]
            _check(words, scores, starts)
            self.notes = Notes(tensors["notes"], tensors["note_starts"]) if "notes" in tensors else None
            self.density = tensors.get("density")
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} does not hold complete explanations: {error!r}") from error
        super().__init__(joined.split("\n") if joined else [], bytes(words.cast("B")), scores, starts)

    def note(self, feature: int) -> dict[str, Any]:
        """What else is known of a feature: label, summary, contexts. Nothing where nothing is."""
        return self.notes[feature] if self.notes is not None and feature < len(self.notes) else {}


def _check(words: memoryview, scores: memoryview, starts: memoryview) -> None:
    bounds = starts.tolist()
    if len(words) != len(scores) or not bounds or bounds[0] != 0 or bounds[-1] != len(words):
        raise ValueError("words, scores and starts disagree")
    if bounds != sorted(bounds):
        raise ValueError("starts should not fall")


def read_vectors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, memoryview]]:
    """(metadata, vectors by name) of a safetensors file, of the types that stand in files of explanations.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or one that is cut off.
    """
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(f"{path} is not a readable safetensors file")
    header = parse_json(data[8 : 8 + length], f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    body = memoryview(data)[8 + length :]
    try:
        known = {name: e for name, e in header.items() if e["dtype"] in _CODES and len(e["shape"]) == 1}
        return metadata, {name: _vector(entry, body) for name, entry in known.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error!r}") from error


def _vector(entry: dict, body: memoryview) -> memoryview:
    code, size = _CODES[entry["dtype"]]
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= len(body) or entry["shape"] != [(last - first) // size] or (last - first) % size:
        raise ValueError(f"a vector of shape {entry['shape']} at bytes {first} to {last} of {len(body)}")
    # what does not begin at a multiple of its size is moved to one
    return memoryview(bytes(body[first:last])).cast(code)  # type: ignore[call-overload]
