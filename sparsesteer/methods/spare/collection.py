"""Answers to conflict prompts and the states before them, collected in parts that a folder keeps."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sparsesteer.documents import read_document, write_document
from sparsesteer.files import DescribedTensors
from sparsesteer.methods.spare.answering import Answerer
from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY, NEITHER, Conflict
from sparsesteer.methods.spare.files import as_json
from sparsesteer.methods.spare.processes import Processes

MANIFEST = "manifest.json"
BATCHES_A_PART = 4
_PART = DescribedTensors("sparsesteer.spare.part", "a part of a collection", "SPARE.fit(..., folder=...)", version=1)
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Collection:
    """What a model did with E examples, n of whose answers came from the context or from memory.

    Attributes:
        answers: of all E.
        sources: int8 [E], CONTEXT, MEMORY or NEITHER.
        states: [n, D] by site, at the last token of the prompt.
        losses: [n, 2], of the text with the substituted and with the original answer; None if not asked for.
    """

    answers: list[str]
    sources: Tensor
    states: dict[Any, Tensor]
    losses: Tensor | None

    @property
    def labels(self) -> Tensor:
        """int8 [n], CONTEXT or MEMORY."""
        return self.sources[self.sources != NEITHER]

    def counts(self) -> dict[str, int]:
        """How many answers came from where."""
        kinds = {"context": CONTEXT, "memory": MEMORY, "neither": NEITHER}
        return {name: int((self.sources == kind).sum()) for name, kind in kinds.items()}


def collect(
    answerer: Answerer,
    conflicts: Sequence[Conflict],
    *,
    with_losses: bool,
    batch_size: int,
    folder: str | os.PathLike | None,
    progress: bool,
) -> Collection:
    """All parts, those that the folder has read from it; several processes answer each a share of them.

    Raises:
        ValueError: a folder of another collection, a damaged part, states that are NaN or infinite; several processes
            without a folder.
        RuntimeError: several processes that do not know of each other.
    """
    processes = Processes.current()
    store = None
    if folder is not None:
        manifest = _manifest(answerer, conflicts, with_losses, batch_size)
        processes.by_first(lambda: _Store.opened(Path(folder), manifest, answerer.places))
        store = _Store.opened(Path(folder), manifest, answerer.places)
    elif processes.count > 1:
        raise ValueError(
            f"SPARE: {processes.count} processes meet in a folder that all of them see; give folder=... to fit"
        )
    size = BATCHES_A_PART * batch_size
    by_start = {first: conflicts[first : first + size] for first in range(0, len(conflicts), size)}
    parts = {}
    for first in tracked(processes.share(list(by_start)), "answering", progress):
        part = None if store is None else store.load(first, len(by_start[first]))
        if part is None:
            part = _read(answerer, by_start[first], first, with_losses, batch_size)
            if store is not None:
                store.save(first, part)
        parts[first] = part
    processes.wait()
    for first, some in by_start.items():
        if first not in parts and store is not None:
            parts[first] = store.load(first, len(some)) or _missing(first)
    return _joined([parts[first] for first in by_start], answerer.places)


def _missing(first: int) -> NoReturn:
    raise RuntimeError(
        f"SPARE: another process left no part that begins with example {first}; do all of them see the same folder?"
    )


def tracked(items: Sequence[Item], what: str, progress: bool) -> Iterable[Item]:
    """The items, with a bar on stderr where that is a terminal."""
    return track(items, what, console=Console(stderr=True), disable=not (progress and sys.stderr.isatty()))


def _read(
    answerer: Answerer, conflicts: Sequence[Conflict], first: int, with_losses: bool, batch_size: int
) -> Collection:
    batches = []
    for start in range(0, len(conflicts), batch_size):
        some = conflicts[start : start + batch_size]
        answerer.prepare([conflict.prompt for conflict in some])
        answers, states = answerer.answers(some)
        for site, each in states.items():
            broken = (~torch.isfinite(each).all(-1)).nonzero()
            if len(broken):
                raise ValueError(
                    f"SPARE: the model's states at {answerer.places[site].path} have NaN or infinite values for "
                    f"example {first + start + int(broken[0])}; fp16 overflows in some models, bf16 does not"
                )
        sources = torch.tensor([c.source_of(a) for c, a in zip(some, answers, strict=True)], dtype=torch.int8)
        kept = sources != NEITHER
        losses = None
        if with_losses:
            pairs = [answerer.losses(conflict) for conflict, keep in zip(some, kept.tolist(), strict=True) if keep]
            losses = torch.tensor(pairs, dtype=torch.float64).view(-1, 2)
        batches.append(Collection(answers, sources, {site: each[kept] for site, each in states.items()}, losses))
    return _joined(batches, answerer.places)


def _joined(parts: Sequence[Collection], sites: Iterable[Any]) -> Collection:
    losses = [part.losses for part in parts if part.losses is not None]
    return Collection(
        [answer for part in parts for answer in part.answers],
        torch.cat([part.sources for part in parts]),
        {site: torch.cat([part.states[site] for part in parts]) for site in sites},
        torch.cat(losses) if losses else None,
    )


def _manifest(answerer: Answerer, conflicts: Sequence[Conflict], with_losses: bool, batch_size: int) -> dict:
    """What two collections must have in common for one to go on with the other."""
    sha = hashlib.sha256(json.dumps([each.as_json() for each in conflicts]).encode())
    return {
        "version": 1,
        "model": type(answerer.model).__name__,
        "model_sha256": answerer.fingerprint(),
        "examples": len(conflicts),
        "examples_sha256": sha.hexdigest(),
        "sites": [[as_json(site), place.path, place.side] for site, place in answerer.places.items()],
        "batch_size": batch_size,
        "max_new_tokens": answerer.max_new_tokens,
        "losses": with_losses,
    }


@dataclass(frozen=True)
class _Store:
    """A folder with a manifest and a file for each part, all written whole."""

    folder: Path
    sites: tuple[Any, ...]
    with_losses: bool

    @classmethod
    def opened(cls, folder: Path, manifest: dict, sites: Mapping[Any, Any]) -> "_Store":
        """Raises ValueError for a folder of another collection."""
        manifest = json.loads(json.dumps(manifest))
        path = folder / MANIFEST
        if path.exists():
            found = read_document(path)
            differ = sorted(name for name in {*found, *manifest} if found.get(name) != manifest.get(name))
            if differ:
                raise ValueError(
                    f"SPARE: {folder} holds a collection that differs in {', '.join(differ)}; choose another one, or "
                    "remove this one to begin anew"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"SPARE: {folder} is not empty and holds no collection; choose another folder")
        else:
            write_document(path, manifest)
        return cls(folder, tuple(sites), bool(manifest["losses"]))

    def path(self, first: int) -> Path:
        """Of the part that begins with an example."""
        return self.folder / f"part-{first:08d}.safetensors"

    def save(self, first: int, part: Collection) -> None:
        """Write a part."""
        tensors = {f"states.{place}": part.states[site] for place, site in enumerate(self.sites)}
        losses = {} if part.losses is None else {"losses": part.losses}
        _PART.save(self.path(first), {"answers": part.answers}, {"sources": part.sources, **losses, **tensors})

    def load(self, first: int, count: int) -> Collection | None:
        """A part, None if it is not there."""
        path = self.path(first)
        if not path.exists():
            return None
        try:
            description, tensors = _PART.load(path)
            states = {site: tensors[f"states.{place}"] for place, site in enumerate(self.sites)}
            losses = tensors["losses"] if self.with_losses else None
            part = Collection(list(description["answers"]), tensors["sources"], states, losses)
            n = len(part.labels)
            if len(part.answers) != count or len(part.sources) != count or any(len(s) != n for s in states.values()):
                raise ValueError(f"{path} does not have {count} examples")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"SPARE: {path} is damaged ({error}); remove it, and it is collected again") from error
        return part
