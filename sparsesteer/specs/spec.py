"""Specs: a steering described as data, in a file that people and services can share."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from sparsesteer import hooks
from sparsesteer.activations import Activation
from sparsesteer.documents import read_document, write_document
from sparsesteer.edits import Edit
from sparsesteer.model.positions import Positions, check_strength, selector
from sparsesteer.naming import resolved
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE
from sparsesteer.specs import documents as spec_documents

SCHEMA_FILE = Path(__file__).parents[1] / "assets" / "spec.schema.json"


@dataclass(frozen=True)
class SaeReference:
    """Where an SAE comes from: sae-lens's names, or a folder; ``digest`` (``SAE.digest``) says that it is the one."""

    release: str | None = None
    id: str | None = None
    path: str | None = None  # relative to the spec's folder
    digest: str | None = None

    def load(self, folder: Path) -> SAE:
        """The SAE. Raises ValueError if the reference names none, or if it is not the one that was meant."""
        if self.release is not None and self.id is not None:
            sae = SAE.from_pretrained(self.release, self.id)
        elif self.path is not None:
            sae = SAE.load_from_disk((folder / Path(self.path).expanduser()).resolve())
        else:
            raise ValueError("the spec does not say where its SAE is; give it: spec.plan(sae)")
        self.check(sae)
        return sae

    def check(self, sae: SAE) -> None:
        """Raise ValueError for an SAE of another digest."""
        if self.digest is not None and self.digest != sae.digest:
            raise ValueError(f"the spec is for the SAE of digest {self.digest}, this one has {sae.digest}")


@dataclass(frozen=True, eq=False)
class Spec:
    """What is steered, where, when and how much. Equal specs say the same, whatever they are called.

    Args:
        edit: features by number, by words or by Neuronpedia id; values absolute or relative to the maximum.
        sae: where the SAE is, so that ``plan`` can load it.
        model: the model's name; the command line loads it.
        site: a block's number (the residual after it) or a place's name, instead of the site that the SAE knows.
        positions: as ``ss.steer`` takes them, but no tensor.
        strength: one number.
        activation: ``ReLU()``, ``Identity()``, ``TopK(k)`` or ``JumpReLU(number)`` instead of the SAE's own.
        reconstruct: as ``SAE.plan`` takes it.
        preserve_norm: as ``SAE.plan`` takes it.
        name: for people.
        description: for people.
        folder: where relative paths start.

    Raises:
        TypeError, ValueError: what cannot be written down.
    """

    edit: Edit
    sae: SaeReference = field(default_factory=SaeReference)
    model: str | None = None
    site: int | str | None = None
    positions: Positions = "all"
    strength: float = 1.0
    activation: Activation | None = None
    reconstruct: bool = False
    preserve_norm: bool = False
    name: str | None = None
    description: str | None = None
    folder: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        selector(self.positions)
        if not isinstance(check_strength(self.strength), float):
            raise TypeError("a spec's strength is one number; give tensors to ss.steer")
        spec_documents.parts_of(self.document(), "Spec")  # what cannot be read again is not written

    def document(self) -> dict[str, Any]:
        """The spec as plain data, the form of its file (``assets/spec.schema.json``)."""
        return spec_documents.document_of(self)

    def canonical(self) -> str:
        """One text for all specs that say the same: JSON, edits by feature, names and descriptions left out."""
        return json.dumps(spec_documents.canonical_of(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical text. Of a ``resolved`` spec it stands for the steering itself, weights included."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.canonical() == other.canonical() if isinstance(other, Spec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.canonical())

    def resolved(self, sae: SAE) -> "Spec":
        """The same steering in numbers alone, tied to this SAE's weights: features by number, values absolute.

        Raises:
            ValueError: as ``SAE.plan``; another SAE than the spec's.
        """
        self.sae.check(sae)
        return replace(
            self,
            edit=resolved(self.edit, sae),
            sae=SaeReference(digest=sae.digest),
            model=self.model or sae.site.model_name,
            site=sae.site.hook_name if self.site is None else self.site,
        )

    def plan(self, sae: SAE | None = None) -> SteeringPlan:
        """The plan, at the spec's site; the spec's own SAE is loaded if none is given.

        Raises:
            ValueError: as ``SAE.plan``; another SAE than the spec's.
        """
        if sae is None:
            sae = self.sae.load(self.folder)
        self.sae.check(sae)
        plan = sae.plan(
            self.edit,
            activation=self.activation,
            reconstruct=self.reconstruct,
            preserve_norm=self.preserve_norm,
        )
        if self.site is None:
            return plan
        hook = f"blocks.{self.site}.hook_resid_post" if isinstance(self.site, int) else self.site
        return replace(plan, site=replace(plan.site, hook_name=hook, hook_name_out=None))

    def steer(
        self,
        model: nn.Module,
        sae: SAE | None = None,
        *,
        exclude_special_tokens: Iterable[int] | object | None = None,
    ) -> hooks.Steering:
        """``ss.steer`` with this spec's plan, strength and positions."""
        return hooks.steer(model, self.plan(sae), self.strength, self.positions, exclude_special_tokens)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the spec as JSON or YAML, by the suffix; returns the path. A relative path of the SAE follows."""
        path = Path(path)
        moved = self.sae
        if moved.path is not None and not Path(moved.path).expanduser().is_absolute():
            there = (self.folder / moved.path).resolve()
            moved = replace(moved, path=os.path.relpath(there, path.parent.resolve()))
        return write_document(path, replace(self, sae=moved).document())


def load_spec(path: str | os.PathLike) -> Spec:
    """Read a spec from a YAML or JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a spec; the message names the place in the document.
    """
    path = Path(path)
    return parse_spec(read_document(path), str(path), path.parent)


def parse_spec(document: dict, where: str = "the spec", folder: str | os.PathLike = "") -> Spec:
    """A spec from plain data. Raises ValueError that names the place in the document."""
    parts = spec_documents.parts_of(document, where)
    parts["sae"] = SaeReference(**parts.get("sae", {}))
    try:
        return Spec(**parts, folder=Path(folder))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
