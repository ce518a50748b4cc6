"""What ``record`` returns: activations of chosen features along tokens, to look at, to save and to draw."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsesteer.files import write_whole
from sparsesteer.generation import token_texts
from sparsesteer.recording import files as recording_files
from sparsesteer.recording.watched import WatchedFeature, site_name

NO_TOKEN = -1  # a call of the model that showed no ids


class Entries(NamedTuple):
    """Some tokens of the stream, on the CPU."""

    tokens: Tensor  # int64 [n] ids, NO_TOKEN where the model was given none
    sequences: Tensor  # int64 [n], the number of each token's sequence
    positions: Tensor  # int64 [n], its place there from 0, padding not counted
    generated: Tensor  # bool [n], False in the prompt
    before: Tensor  # [n, M]
    after: Tensor  # [n, M]

    def pick(self, which: Any) -> "Entries":
        """Those of a mask, indices or a slice."""
        return Entries(*(each[which] for each in self))

    def columns(self, which: list[int]) -> "Entries":
        """Some features of all tokens."""
        return self._replace(before=self.before[:, which], after=self.after[:, which])


def joined(parts: Sequence[Entries]) -> Entries:
    """All of them, one after the other."""
    return Entries(*map(torch.cat, zip(*parts, strict=True)))


def no_entries(n_columns: int) -> Entries:
    """An empty stream."""
    whole = torch.zeros(0, dtype=torch.int64)
    return Entries(whole, whole, whole, whole.bool(), torch.zeros(0, n_columns), torch.zeros(0, n_columns))


class Recording:
    """Activations of M features on n tokens, in the order in which the model read them.

    ``before`` is what entered the site, ``after`` what left it: they differ where something steers there. Rows of a
    batch and later prompts are sequences of their own; ``sequence(i)`` is one of them. Padding is left out.
    """

    def __init__(
        self,
        features: Sequence[WatchedFeature],
        *,
        tokenizer: Any = None,
        texts: Sequence[str] | None = None,  # one for each token, where they are known
        last: int | None = None,
    ) -> None:
        self.features = tuple(features)  # of the M columns
        self._tokenizer = tokenizer
        self._texts = None if texts is None else tuple(texts)
        self._last = last
        self._lock = threading.Lock()
        self._whole: Entries | None = no_entries(len(self.features))
        self._parts: list[Callable[[], Entries] | Entries] = []
        self._sizes: list[int] = []

    def add(self, entries: Callable[[], Entries] | Entries, size: int) -> None:
        """Take in ``size`` tokens, or a function that gives them when they are asked for."""
        with self._lock:
            self._parts.append(entries)
            self._sizes.append(size)
            self._whole = None
            if self._last is not None:
                while self._sizes and sum(self._sizes) - self._sizes[0] >= self._last:
                    del self._parts[0], self._sizes[0]

    @property
    def entries(self) -> Entries:
        """All tokens that are kept."""
        with self._lock:
            if self._whole is None:
                parts = [part() if callable(part) else part for part in self._parts]
                whole = joined(parts) if parts else no_entries(len(self.features))
                if self._last is not None:
                    whole = whole.pick(slice(max(0, len(whole.tokens) - self._last), None))
                self._whole, self._parts, self._sizes = whole, [whole], [len(whole.tokens)]
            return self._whole

    def __len__(self) -> int:
        """n, the number of tokens."""
        return len(self.entries.tokens)

    def __repr__(self) -> str:
        return f"Recording({len(self)} tokens, {len(self.sequence_numbers)} sequences, {len(self.features)} features)"

    @property
    def tokens(self) -> Tensor:
        """int64 [n], token ids; -1 where the model was given embeddings."""
        return self.entries.tokens

    @property
    def sequences(self) -> Tensor:
        """int64 [n], the number of each token's sequence."""
        return self.entries.sequences

    @property
    def positions(self) -> Tensor:
        """int64 [n], each token's place in its sequence, padding not counted."""
        return self.entries.positions

    @property
    def generated(self) -> Tensor:
        """bool [n], True for tokens that the model wrote."""
        return self.entries.generated

    @property
    def before(self) -> Tensor:
        """[n, M], the activations of what entered each site."""
        return self.entries.before

    @property
    def after(self) -> Tensor:
        """[n, M], the activations of what left it."""
        return self.entries.after

    @property
    def sequence_numbers(self) -> list[int]:
        """The sequences, rising."""
        return self.sequences.unique().tolist()

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The text of every token; None without a tokenizer."""
        if self._texts is not None or self._tokenizer is None:
            return self._texts
        entries = self.entries
        texts = [""] * len(entries.tokens)
        for number in entries.sequences.unique().tolist():
            places = (entries.sequences == number).nonzero()[:, 0].tolist()
            written = token_texts(self._tokenizer, entries.tokens[places].tolist())
            for place, text in zip(places, written, strict=True):
                texts[place] = text
        return tuple(texts)

    def sequence(self, number: int) -> "Recording":
        """One sequence. Raises ValueError if there is none of that number."""
        if number not in self.sequence_numbers:
            raise ValueError(f"Recording: there is no sequence {number}, only {self.sequence_numbers}")
        return self._part((self.sequences == number).nonzero()[:, 0], list(range(len(self.features))))

    def at(self, site: int | str) -> "Recording":
        """The features of one site. Raises ValueError if it was not recorded."""
        columns = [i for i, each in enumerate(self.features) if each.site == site_name(site)]
        if not columns:
            raise ValueError(f"Recording: no site {site!r}, only {sorted({each.site for each in self.features})}")
        return self._part(torch.arange(len(self)), columns)

    def _part(self, places: Tensor, columns: list[int]) -> "Recording":
        texts = None if self._texts is None else [self._texts[i] for i in places.tolist()]
        part = Recording([self.features[i] for i in columns], tokenizer=self._tokenizer, texts=texts)
        part.add(self.entries.pick(places).columns(columns), len(places))
        return part

    def to_dict(self) -> dict:
        """Everything in plain Python: the features, and a list of sequences with a list for each of their tokens."""
        return recording_files.as_dict(self)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a .safetensors file (exact) or a .json file of ``to_dict`` (numbers that are not finite as null).

        Raises:
            ValueError: another ending.
        """
        return recording_files.save(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Recording":
        """Read what ``save`` wrote as .safetensors.

        Raises:
            ValueError: not a recording, truncated, or of a newer version.
        """
        features, tensors, texts = recording_files.load(Path(path))
        recording = cls([WatchedFeature(site, feature) for site, feature in features], texts=texts)
        recording.add(Entries(**tensors), len(tensors["tokens"]))
        return recording

    def plot(self, path: str | os.PathLike, *, sequence: int | None = None) -> Path:
        """Draw the activations along the tokens, a panel for each feature, before and after as two lines.

        Args:
            path: a picture; its ending says of which kind (.png, .svg, .pdf).
            sequence: which one, if there are several.

        Raises:
            ValueError: nothing was recorded, or several sequences and none named.
            ImportError: matplotlib is not installed.
        """
        from sparsesteer.recording import token_plot

        return token_plot.draw(self._one(sequence), Path(path))

    def to_html(self, path: str | os.PathLike, *, title: str = "Feature activations") -> Path:
        """Write a page that shows every sequence's tokens in the colour of a feature's activation.

        One file that needs nothing else. Raises ValueError if nothing was recorded.
        """
        from sparsesteer.recording import token_view

        if not len(self):
            raise ValueError("Recording.to_html: nothing was recorded; call the model inside the `with` block")
        return write_whole(Path(path), token_view.page(self, title).encode())

    def _one(self, number: int | None) -> "Recording":
        if not len(self):
            raise ValueError("Recording.plot: nothing was recorded; call the model inside the `with` block")
        if number is not None:
            return self.sequence(number)
        if len(self.sequence_numbers) > 1:
            raise ValueError(
                f"Recording.plot: there are {len(self.sequence_numbers)} sequences; name one of "
                f"{self.sequence_numbers[:9]}, as in plot(path, sequence={self.sequence_numbers[0]})"
            )
        return self
