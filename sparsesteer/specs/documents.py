"""The form of a spec as plain data (``assets/spec.schema.json``): from a document to its parts, and back."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sparsesteer.activations import Activation, Identity, JumpReLU, ReLU, TopK
from sparsesteer.edits import VALUE_RULES, Edit, Feature, FeatureEdit
from sparsesteer.model.positions import NAMES

if TYPE_CHECKING:
    from sparsesteer.specs.spec import Spec

VERSION = 1
_RULES = (*VALUE_RULES, "hinge", "ablate")
_PLAIN_ACTIVATIONS = {"relu": ReLU, "identity": Identity}
_NUMBERED_ACTIVATIONS = {"topk": TopK, "jumprelu": JumpReLU}
_LARGEST = sys.float_info.max
_NOT_IN_CANONICAL = ("name", "description")


def parts_of(document: dict, where: str) -> dict[str, Any]:
    """The arguments of a Spec; ``sae`` as a dict. Raises ValueError that names the place in the document."""
    if not isinstance(document, dict):
        raise ValueError(f"{where} should be a mapping of names to values, got {type(document).__name__}")
    readers: dict[str, Callable[[Any, str], Any]] = {
        "version": _version,
        "name": _text,
        "description": _text,
        "model": _text,
        "sae": _sae,
        "site": _site,
        "positions": positions_of,
        "strength": _number,
        "activation": _activation,
        "reconstruct": _flag,
        "preserve_norm": _flag,
        "edits": _edits,
    }
    _check_names(document, readers, where, required=("version", "edits"))
    parts = {name: readers[name](value, f"{where}: {name}") for name, value in document.items()}
    del parts["version"]
    parts["edit"] = parts.pop("edits")
    return parts


def document_of(spec: "Spec") -> dict[str, Any]:
    """The document of a spec, without what has its default value."""
    sae = {name: value for name, value in vars(spec.sae).items() if value is not None}
    optional: dict[str, tuple[Any, Any]] = {
        "name": (spec.name, None),
        "description": (spec.description, None),
        "model": (spec.model, None),
        "sae": (sae, {}),
        "site": (spec.site, None),
        "positions": (positions_document(spec.positions), "all"),
        "strength": (float(spec.strength), 1.0),
        "activation": (_activation_document(spec.activation), None),
        "reconstruct": (spec.reconstruct, False),
        "preserve_norm": (spec.preserve_norm, False),
    }
    given = {name: value for name, (value, default) in optional.items() if value != default}
    return {"version": VERSION, **given, "edits": list(_edit_documents(spec.edit))}


def canonical_of(spec: "Spec") -> dict[str, Any]:
    """The document that all specs with the same content have in common."""
    document = document_of(spec)
    for name in _NOT_IN_CANONICAL:
        document.pop(name, None)
    changes = sorted(spec.edit.changes, key=lambda change: (isinstance(change.feature, str), str(change.feature)))
    document["edits"] = [
        [change.feature, change.rule, _value_document(change), change.when_active] for change in changes
    ]
    return document


def _check_names(mapping: dict, known: Iterable[str], where: str, required: tuple[str, ...] = ()) -> None:
    known = list(known)
    for name in mapping:
        if name not in known:
            raise ValueError(f"{where}: {name!r} is not known there; {', '.join(known)} are")
    for name in required:
        if name not in mapping:
            raise ValueError(f"{where}: {name} is missing")


def _wrong(where: str, wanted: str, value: object) -> ValueError:
    shown = repr(value)
    return ValueError(f"{where} should be {wanted}, got {shown if len(shown) <= 80 else shown[:77] + '...'}")


def _version(value: Any, where: str) -> int:
    if value != VERSION or isinstance(value, bool):
        raise _wrong(where, f"{VERSION}, the version that this sparsesteer reads", value)
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "text", value)
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise _wrong(where, "a finite number", value)
    return float(value)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(where, "a whole number", value)
    return value


def _sae(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _wrong(where, "{release, id} or {path}, and perhaps {digest}", value)
    _check_names(value, ("release", "id", "path", "digest"), where)
    if ("release" in value) != ("id" in value) or ("path" in value and "release" in value) or not value:
        raise _wrong(where, "{release, id} or {path}, and perhaps {digest}", value)
    return {name: _text(part, f"{where}.{name}") for name, part in value.items()}


def _site(value: Any, where: str) -> int | str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(where, "a block's number, or the name of a place in the model", value)
    return value


def positions_of(value: Any, where: str) -> str | list[int] | slice:
    """Positions from their form as plain data. Raises ValueError that names the place in the document."""
    if isinstance(value, str) and value in NAMES:
        return value
    if isinstance(value, list):
        return [_whole(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        _check_names(value, ("start", "stop"), where)
        bounds = {name: _whole(bound, f"{where}.{name}") for name, bound in value.items()}
        return slice(bounds.get("start"), bounds.get("stop"))
    raise _wrong(where, f"{', '.join(NAMES)}, a list of whole numbers, or {{start, stop}}", value)


def positions_document(positions: Any) -> Any:
    """Positions as plain data. Raises TypeError, ValueError for those that have no such form: masks, steps."""
    if isinstance(positions, slice):
        if positions.step not in (None, 1):
            raise ValueError(f"a spec's positions are a slice without a step, got {positions}")
        bounds = {"start": positions.start, "stop": positions.stop}
        return {name: int(bound) for name, bound in bounds.items() if bound is not None}
    if isinstance(positions, str):
        return positions
    if isinstance(positions, list | tuple):
        return [int(position) for position in positions]
    raise TypeError(f"a spec's positions are {', '.join(NAMES)}, a list of whole numbers or a slice, got {positions!r}")


def _activation(value: Any, where: str) -> Activation:
    if isinstance(value, str) and value in _PLAIN_ACTIVATIONS:
        return _PLAIN_ACTIVATIONS[value]()
    if isinstance(value, dict) and len(value) == 1:
        [(name, number)] = value.items()
        if name == "topk" and _whole(number, f"{where}.topk") > 0:
            return TopK(number)
        if name == "jumprelu":
            return JumpReLU(_number(number, f"{where}.jumprelu"))
    raise _wrong(where, "relu, identity, {topk: whole number} or {jumprelu: threshold}", value)


def _activation_document(activation: Activation | None) -> Any:
    if activation is None:
        return None
    for name, kind in _PLAIN_ACTIVATIONS.items():
        if type(activation) is kind:
            return name
    if isinstance(activation, TopK):
        return {"topk": activation.k}
    if isinstance(activation, JumpReLU) and isinstance(activation.threshold, int | float):
        return {"jumprelu": float(activation.threshold)}
    raise ValueError(
        f"a spec's activation is ReLU(), Identity(), TopK(k) or JumpReLU(number), got {type(activation).__name__} "
        "with tensors"
    )


def _edits(value: Any, where: str) -> Edit:
    if not isinstance(value, list):
        raise _wrong(where, "a list, as in [{set: {123: 8}}]", value)
    changes: list[FeatureEdit] = []
    for i, entry in enumerate(value):
        changes += _changes(entry, f"{where}[{i}]")
    try:
        return Edit(tuple(changes))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _changes(entry: Any, where: str) -> Iterator[FeatureEdit]:
    if not isinstance(entry, dict):
        raise _wrong(where, "a mapping from a rule to features, as in {set: {123: 8}}", entry)
    _check_names(entry, (*_RULES, "when_active"), where)
    rules = [name for name in entry if name != "when_active"]
    if len(rules) != 1:
        raise ValueError(f"{where} should name one rule of {', '.join(_RULES)}, got {', '.join(rules) or 'none'}")
    [rule] = rules
    when_active = _flag(entry.get("when_active", False), f"{where}.when_active")
    features, where = entry[rule], f"{where}.{rule}"
    if rule == "ablate":
        if not isinstance(features, list):
            raise _wrong(where, "a list of features", features)
        if when_active:
            raise ValueError(f"{where} has no when_active: an inactive feature is 0 already")
        for i, feature in enumerate(features):
            yield from _located(lambda f: Edit.ablate([f]), _feature(feature), f"{where}[{i}]")
        return
    if not isinstance(features, dict):
        raise _wrong(where, "a mapping of features to values", features)
    make = Edit.hinge if rule == "hinge" else VALUE_RULES[rule]
    for feature, value in features.items():
        one = {_feature(feature): value}
        yield from _located(lambda values: make(values, when_active=when_active), one, f"{where}[{feature!r}]")


def _located(make: Callable[[Any], Edit], argument: Any, where: str) -> tuple[FeatureEdit, ...]:
    try:
        return make(argument).changes
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from error


def _feature(name: Any) -> Any:
    """A feature's number where JSON could only write it as text."""
    return int(name) if isinstance(name, str) and name.isascii() and name.isdecimal() else name


def _edit_documents(edit: Edit) -> Iterator[dict[str, Any]]:
    """One entry for each run of changes of the same rule."""
    entry: dict[str, Any] = {}
    for change in edit.changes:
        flag = {"when_active": True} if change.when_active else {}
        if change.rule not in entry or entry.get("when_active", False) != change.when_active:
            if entry:
                yield entry
            entry = {change.rule: [] if change.rule == "ablate" else {}, **flag}
        if change.rule == "ablate":
            entry["ablate"].append(change.feature)
        else:
            entry[change.rule][change.feature] = _value_document(change)
    if entry:
        yield entry


def _value_document(change: FeatureEdit) -> Feature | float | list[float] | None:
    if change.rule == "hinge":
        return [change.c0, change.c1, change.c2, change.knot]
    return change.said_value()
