"""Labelled states on disk: collected in parts that a folder keeps, read a few parts at a time."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sparsesteer.documents import read_document, write_document
from sparsesteer.files import DescribedTensors
from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.spare.files import as_json
from sparsesteer.model.places import Place

MANIFEST = "manifest.json"
ROWS_A_PART = 1024
PARTS_AT_A_TIME = 16
_SAMPLED = 16  # numbers of each parameter that tell models apart
_PART = DescribedTensors("sparsesteer.alignsae.part", "a part of a collection", "AlignSAE.fit(folder=...)", version=1)


@dataclass(frozen=True)
class Batch:
    """States [B, D], the concept of each [B], and the token that its answer begins with [B], -1 where none is known."""

    h: Tensor
    labels: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.h)

    def __getitem__(self, rows: Any) -> "Batch":
        return Batch(self.h[rows], self.labels[rows], self.tokens[rows])

    @staticmethod
    def joined(some: Sequence["Batch"]) -> "Batch":
        """One behind the other."""
        return Batch(*(torch.cat([getattr(each, name) for each in some]) for name in ("h", "labels", "tokens")))


@dataclass(frozen=True)
class States:
    """The labelled states of one site; memory holds a few parts of them, however many there are.

    Attributes:
        width: D.
        labels: int64 [n], all of them.
        tokens: int64 [n].
    """

    width: int
    labels: Tensor
    tokens: Tensor
    parts: tuple[Callable[[], Batch], ...]

    @classmethod
    def of(cls, h: Tensor, labels: Tensor, tokens: Tensor | None = None) -> "States":
        """Of tensors in memory: h [n, D], labels [n] and perhaps tokens [n].

        Raises:
            ValueError: other shapes.
        """
        tokens = torch.full_like(labels, -1) if tokens is None else tokens
        if h.dim() != 2 or not len(h) == len(labels) == len(tokens):
            raise ValueError(
                f"AlignSAE: states [n, D] have labels and tokens [n], got {list(h.shape)}, {list(labels.shape)} and "
                f"{list(tokens.shape)}"
            )
        whole = Batch(h.float(), labels, tokens)
        return cls(h.shape[1], labels, tokens, (lambda: whole,))

    def __len__(self) -> int:
        return len(self.labels)

    def in_order(self) -> Iterator[Batch]:
        """Part after part."""
        for part in self.parts:
            yield part()

    def shuffled(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Batches of chance, the last one smaller or, of one row, left out; some parts are mixed at a time."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.parts), generator=generator).tolist()
        left: list[Batch] = []
        for start in range(0, len(order), PARTS_AT_A_TIME):
            read = Batch.joined([*left, *(self.parts[place]() for place in order[start : start + PARTS_AT_A_TIME])])
            read = read[torch.randperm(len(read), generator=generator)]
            last = start + PARTS_AT_A_TIME >= len(order)
            whole = len(read) if last else len(read) // batch_size * batch_size
            for first in range(0, whole, batch_size):
                batch = read[first : min(first + batch_size, whole)]
                if len(batch) > 1:
                    yield batch
            left = [read[whole:]] if not last else []


def collect(
    answerer: Answerer,
    places: Mapping[Any, Place],
    prompts: Sequence[str],
    labels: Sequence[int],
    answers: Sequence[str] | None,
    folder: str | os.PathLike,
    batch_size: int,
    tracked: Callable[[Sequence[int]], Any] = iter,
) -> dict[Any, States]:
    """States at the last token of every prompt by site, in a folder; parts that are there are not read again.

    Raises:
        ValueError: a folder of another collection, a damaged part, states that are NaN or infinite.
    """
    folder = Path(folder)
    tokens = [-1] * len(prompts) if answers is None else answerer.first_tokens(answers)
    asked = hashlib.sha256(json.dumps([list(prompts), list(map(int, labels)), tokens]).encode()).hexdigest()
    manifest = {
        "version": 1,
        "model": type(answerer.model).__name__,
        "model_sha256": fingerprint(answerer.model),
        "prompts": len(prompts),
        "prompts_sha256": asked,
        "sites": [[as_json(site), place.path, place.side] for site, place in places.items()],
    }
    _check_manifest(folder, json.loads(json.dumps(manifest)))
    starts = range(0, len(prompts), ROWS_A_PART)
    for first in tracked([first for first in starts if not _path(folder, first).exists()]):
        end = min(first + ROWS_A_PART, len(prompts))
        found = [
            answerer.last_states(prompts[start : min(start + batch_size, end)], places)
            for start in range(first, end, batch_size)
        ]
        tensors = {"labels": torch.tensor(labels[first:end]), "tokens": torch.tensor(tokens[first:end])}
        for number, site in enumerate(places):
            whole = tensors[f"states.{number}"] = torch.cat([each[site] for each in found])
            broken = (~torch.isfinite(whole).all(-1)).nonzero()
            if len(broken):
                raise ValueError(
                    f"AlignSAE: the model's states at {places[site].path} have NaN or infinite values for prompt "
                    f"{first + int(broken[0])}; fp16 overflows in some models, bf16 does not"
                )
        _PART.save(_path(folder, first), {"first": first}, tensors)
    return {
        site: opened(folder, number, [min(ROWS_A_PART, len(prompts) - first) for first in starts])
        for number, site in enumerate(places)
    }


def opened(folder: Path, number: int, counts: Sequence[int]) -> States:
    """The states of a site, by its place among those of the collection, that stand in a folder's parts.

    Raises:
        ValueError: a damaged part.
    """
    paths = [_path(folder, place * ROWS_A_PART) for place in range(len(counts))]
    heads = [_read(path, count, ("labels", "tokens")) for path, count in zip(paths, counts, strict=True)]
    pairs = zip(paths, counts, strict=True)
    parts = tuple(_reader(path, count, f"states.{number}") for path, count in pairs)
    labels, tokens = (torch.cat([head[name] for head in heads]) for name in ("labels", "tokens"))
    return States(parts[0]().h.shape[1], labels, tokens, parts)


def fingerprint(model: torch.nn.Module) -> str:
    """Tells models apart by some numbers out of every parameter."""
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        picked = flat[torch.arange(_SAMPLED, device=flat.device) * (len(flat) - 1) // (_SAMPLED - 1)]
        sha.update(repr((name, tuple(parameter.shape), str(parameter.dtype))).encode())
        sha.update(picked.double().cpu().numpy().tobytes())
    return sha.hexdigest()


def _reader(path: Path, count: int, name: str) -> Callable[[], Batch]:
    def read() -> Batch:
        tensors = _read(path, count, (name, "labels", "tokens"))
        return Batch(tensors[name], tensors["labels"], tensors["tokens"])

    return read


def _read(path: Path, count: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Only these tensors of a part."""
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in names}
        if any(len(tensor) != count for tensor in tensors.values()):
            raise ValueError(f"it does not have {count} prompts")
    except Exception as error:  # safetensors raises errors of its own class for a damaged file
        raise ValueError(f"AlignSAE: {path} is damaged ({error}); remove it, and it is collected again") from error
    return tensors


def _path(folder: Path, first: int) -> Path:
    return folder / f"part-{first:08d}.safetensors"


def _check_manifest(folder: Path, manifest: dict) -> None:
    path = folder / MANIFEST
    if not path.exists():
        write_document(path, manifest)
        return
    found = read_document(path)
    differ = sorted(name for name in {*found, *manifest} if found.get(name) != manifest.get(name))
    if differ:
        raise ValueError(
            f"AlignSAE: {folder} holds a collection that differs in {', '.join(differ)}; choose another folder, or "
            "remove this one"
        )
