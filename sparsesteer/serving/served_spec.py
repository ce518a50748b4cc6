"""What a server steers by: plans at places of a model, known by their content."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsesteer.model.positions import Positions, check_strength, selector
from sparsesteer.plans import SteeringPlan
from sparsesteer.plans import files as plan_files
from sparsesteer.sae import SAE
from sparsesteer.serving.block_names import block_of, name_of
from sparsesteer.specs import Spec
from sparsesteer.specs import documents as spec_documents

VERSION = 1
ID_LENGTH = 16  # hexadecimal digits of the digest


@dataclass(frozen=True, eq=False)
class ServedSpec:
    """Plans by place, which tokens they steer, and how much; never changed, and known by a digest of its content.

    Args:
        plans: one plan, whose SAE knows its site, or {site: plan}; sites are blocks: 16, "blocks.16.hook_resid_post".
        positions: as ``ss.steer`` takes them, but no masks; counted in the request's own sequence.
        strength: multiplies every edit, and is multiplied by the strength that a request asks for.

    Raises:
        ValueError: no plan, two plans at one place, TopK and reconstruct plans, transcoders, other places than the
            residual stream.
        TypeError: positions and strengths that cannot be written down.
    """

    plans: Mapping[Any, SteeringPlan] | SteeringPlan
    positions: Positions = "all"
    strength: float = 1.0

    def __post_init__(self) -> None:
        selector(self.positions)
        document = spec_documents.positions_document(self.positions)
        object.__setattr__(self, "positions", spec_documents.positions_of(document, "positions"))
        if not isinstance(check_strength(self.strength), float):
            raise TypeError("a spec's strength is one number; a request multiplies it: 'name@0.5'")
        object.__setattr__(self, "plans", _by_place(self.plans))

    @classmethod
    def of(cls, spec: Spec, sae: SAE | None = None) -> "ServedSpec":
        """What a described spec comes to with its SAE, which is loaded if not given. Raises as ``Spec.plan``."""
        return cls(spec.plan(sae), spec.positions, spec.strength)  # type: ignore[arg-type]

    @property
    def id(self) -> str:
        """The first 16 digits of the SHA-256 of the canonical text."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:ID_LENGTH]

    def canonical(self) -> str:
        """One text for all specs that do the same: JSON, tensors by their digest."""
        sites = {}
        for place, plan in self.plans.items():  # type: ignore[union-attr]
            tensors = {name: _digest(tensor) for name, tensor in plan_files.tensors_of(plan).items()}
            description = {name: value for name, value in plan_files.described(plan).items() if name != "site"}
            sites[place] = description | {"tensors": tensors}
        document = {
            "version": VERSION,
            "sites": sites,
            "positions": spec_documents.positions_document(self.positions),
            "strength": float(self.strength),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def by_block(self) -> dict[int, SteeringPlan]:
        """The plans by the number of their block."""
        return {block_of(place): plan for place, plan in self.plans.items()}  # type: ignore[union-attr]

    def __eq__(self, other: object) -> bool:
        return self.canonical() == other.canonical() if isinstance(other, ServedSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.canonical())

    def __repr__(self) -> str:
        return f"ServedSpec({self.id}, {', '.join(self.plans)}, positions={self.positions!r})"  # type: ignore[arg-type]


def _by_place(plans: Mapping[Any, SteeringPlan] | SteeringPlan) -> dict[str, SteeringPlan]:
    pairs = [(plans.site, plans)] if isinstance(plans, SteeringPlan) else list(plans.items())
    if not pairs:
        raise ValueError("ServedSpec: no plan was given")
    named: dict[str, SteeringPlan] = {}
    for site, plan in pairs:
        if not isinstance(plan, SteeringPlan):
            raise TypeError(f"ServedSpec: at {site} should be a SteeringPlan, got {type(plan).__name__}")
        place = name_of(block_of(site))
        if place in named:
            raise ValueError(f"ServedSpec: two plans at {place}; join them with |")
        if plan.needs_sae:
            raise ValueError(
                "ServedSpec: TopK and reconstruct plans need their whole SAE and are not served; "
                "sae.plan(edit, activation=ss.ReLU()) leaves TopK's mask out"
            )
        if plan.encoder.shape[1] != plan.decoder.shape[1]:
            raise ValueError(f"ServedSpec: the plan at {place} is a transcoder's; one place is read and written")
        named[place] = replace(plan, sae=None).to("cpu").in_order()
    return dict(sorted(named.items()))


def _digest(tensor: Tensor) -> list:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), hashlib.sha256(raw.data).hexdigest()]
