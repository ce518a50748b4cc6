"""Plans as files: one safetensors file each, its rules and provenance in the header."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsesteer._layout import InputNorm, OutputScale
from sparsesteer.files import DescribedTensors
from sparsesteer.plans.plan import TABLES, SteeringPlan
from sparsesteer.site import Site

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

_FILE = DescribedTensors("sparsesteer", "a steering plan", "plan.save(path)", version=1)


def save_plan(plan: SteeringPlan, path: str | os.PathLike) -> Path:
    """Write a plan as one file; returns the path."""
    return _FILE.save(path, described(plan), tensors_of(plan))


def tensors_of(plan: SteeringPlan) -> dict[str, Tensor]:
    """A plan's tensors by name, on the CPU."""
    names = TABLES if plan.delta_bias is None else (*TABLES, "delta_bias")
    return {name: getattr(plan, name).detach().cpu().contiguous() for name in names}


def described(plan: SteeringPlan) -> dict[str, Any]:
    """All of a plan that is no tensor, as plain data."""
    return {
        "input_norm": plan.input_norm.name,
        "scale_rule": plan.scale_rule.name,
        "gap": float(plan.gap),
        "preserve_norm": plan.preserve_norm,
        "k": plan.k,
        "reconstruct": plan.reconstruct,
        "sae_digest": plan.sae_digest,
        "site": vars(plan.site),
    }


def assembled(description: dict, tensors: dict[str, Tensor], where: object) -> SteeringPlan:
    """A plan from what ``described`` and ``tensors_of`` gave. Raises ValueError for anything else, or NaN in it."""
    try:
        tables: dict[str, Any] = {name: tensors[name] for name in TABLES}
        plan = SteeringPlan(**_described(description), **tables, delta_bias=tensors.get("delta_bias"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not a complete steering plan: {error!r}") from error
    _check_values(plan, where)
    return plan.in_order()


def load_plan(path: str | os.PathLike, sae: "SAE | None" = None) -> SteeringPlan:
    """Read a plan; one of a TopK SAE or with ``reconstruct`` needs its ``sae`` again, checked by digest.

    Raises:
        ValueError: not a plan, a truncated file, a newer version, another SAE than the plan was made from.
    """
    plan = assembled(*_FILE.load(path), path)
    return plan if sae is None else plan.with_sae(sae, path)


def _check_values(plan: SteeringPlan, path: object) -> None:
    for name in ("encoder", "decoder", "delta_bias"):
        tensor = getattr(plan, name)
        if tensor is not None and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} has NaN or infinite values")
    if torch.isnan(plan.rows).any():
        raise ValueError(f"{path}: rows have NaN values")
    if (torch.cat([plan.features, plan.constant_features]) < 0).any():
        raise ValueError(f"{path}: a feature is counted from 0, features hold negative numbers")


def _described(description: dict) -> dict:
    """The arguments of a plan that are not tensors, out of a file's description, their types checked."""
    fields = {"preserve_norm": bool, "k": int, "reconstruct": bool, "gap": float}
    found: dict = {name: _typed(description, name, kind) for name, kind in fields.items()}
    site = {name: _typed(description["site"], name, (str, type(None))) for name in description["site"]}
    return found | {
        "input_norm": InputNorm[_typed(description, "input_norm", str)],
        "scale_rule": OutputScale[_typed(description, "scale_rule", str)],
        "site": Site(**site),
        "sae_digest": _typed(description, "sae_digest", (str, type(None))),
    }


def _typed(description: dict, name: str, kind: type | tuple[type, ...]) -> Any:
    value = description[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} is {value!r}")
    return value
