"""A trained AlignSAE as a folder: the SAE in the package's format, and beside it the concepts and value heads."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsesteer.files import DescribedTensors
from sparsesteer.methods.alignsae.network import ValueHeads
from sparsesteer.sae import SAE
from sparsesteer.site import Site

CONCEPTS = "alignsae.safetensors"
_FILE = DescribedTensors("sparsesteer.alignsae", "the concepts of an AlignSAE", "alignsae.save(folder)", version=1)


def save(
    path: str | os.PathLike, sae: SAE, concepts: tuple[str, ...], heads: ValueHeads | None, about: Mapping[str, Any]
) -> Path:
    """Write the folder, complete or not at all; returns its path. Raises FileExistsError for one that is there."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"AlignSAE.save: {path} exists already; remove it, or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as outside:
        folder = sae.save(Path(outside) / path.name)
        tensors: dict[str, Tensor] = {} if heads is None else dict(heads.state_dict())
        description = {"concepts": list(concepts), "about": dict(about), "sae_digest": sae.digest}
        _FILE.save(folder / CONCEPTS, description, tensors or {"none": torch.zeros(0)})
        os.replace(folder, path)
    return path


def load(
    path: str | os.PathLike, site: Site | None = None
) -> tuple[SAE, tuple[str, ...], ValueHeads | None, dict[str, Any]]:
    """(SAE, concepts, value heads, about). Raises ValueError; see ``AlignSAE.load``."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; an AlignSAE is one, written with alignsae.save(folder)")
    if not (path / CONCEPTS).exists():
        raise ValueError(f"{path} has no {CONCEPTS}; it is no AlignSAE, or a plain SAE for SAE.load_from_disk")
    sae = SAE.load_from_disk(path, site=site)
    description, tensors = _FILE.load(path / CONCEPTS)
    try:
        concepts, about = tuple(map(str, description["concepts"])), dict(description["about"])
        digest = description["sae_digest"]
        heads = _heads(tensors, len(concepts)) if "tokens" in tensors else None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path / CONCEPTS} is not complete: {error!r}") from error
    if digest != sae.digest:
        raise ValueError(f"{path}: {CONCEPTS} belongs to other weights than those beside it")
    return sae, concepts, heads, about


def _heads(tensors: Mapping[str, Tensor], n_concepts: int) -> ValueHeads:
    heads = ValueHeads(n_concepts, tensors["tokens"], tensors["inner"].shape[1], torch.Generator())
    heads.load_state_dict(dict(tensors))
    return heads.eval()
