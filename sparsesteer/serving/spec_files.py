"""A served spec as one safetensors file: tensors by place, everything else as canonical JSON in the header."""

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from sparsesteer.plans import files as plan_files
from sparsesteer.serving.limits import Limits
from sparsesteer.serving.served_spec import VERSION, ServedSpec
from sparsesteer.specs import documents as spec_documents
from sparsesteer.storage import parse_json

_KEY = "sparsesteer_served_spec"


def to_bytes(spec: ServedSpec) -> bytes:
    """The file of a spec."""
    tensors = {}
    sites = {}
    for place, plan in spec.plans.items():  # type: ignore[union-attr]
        tensors.update({f"{place}/{name}": tensor for name, tensor in plan_files.tensors_of(plan).items()})
        sites[place] = plan_files.described(plan)
    document = {
        "version": VERSION,
        "sites": sites,
        "positions": spec_documents.positions_document(spec.positions),
        "strength": float(spec.strength),
    }
    return save(tensors, metadata={_KEY: json.dumps(document, sort_keys=True, allow_nan=False)})


def from_bytes(data: bytes, where: str = "the spec", limits: Limits | None = None) -> ServedSpec:
    """The spec in a file's content; nothing in it is run or trusted.

    Raises:
        ValueError: not such a file, values that are not finite, a newer version, more than the limits allow.
    """
    limits = limits or Limits()
    limits.check_size(len(data), where)
    try:
        tensors = load(data)
        text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}).get(_KEY)
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{where} is not a readable safetensors file: {error}") from error
    if text is None:
        raise ValueError(f"{where} is a safetensors file but not a served spec")
    document = parse_json(text, f"the description in {where}")
    if document.get("version") != VERSION:
        raise ValueError(f"{where} has version {document.get('version')}, this sparsesteer reads {VERSION}")
    spec = _assembled(document, tensors, where)
    limits.check(spec, where)
    return spec


def positions_of(spec: ServedSpec) -> object:
    """A spec's positions as plain data."""
    return spec_documents.positions_document(spec.positions)


def _assembled(document: dict, tensors: dict, where: str) -> ServedSpec:
    sites: Any = document.get("sites")
    strength = document.get("strength")
    if not isinstance(sites, dict) or not all(isinstance(each, dict) for each in sites.values()):
        raise ValueError(f"{where}: sites should be plans by place")
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise ValueError(f"{where}: strength should be a number, got {strength!r}")
    plans = {}
    for place, description in sites.items():
        own = {name.removeprefix(f"{place}/"): t for name, t in tensors.items() if name.startswith(f"{place}/")}
        plans[place] = plan_files.assembled(description, own, f"{where}: {place}")
    positions = spec_documents.positions_of(document.get("positions"), f"{where}: positions")
    try:
        return ServedSpec(plans, positions, float(strength))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from error
