"""What the user says: which features change, and how."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

Feature = int | str  # its number, or a name: a word of the SAE's explanations, a Neuronpedia id
Value = float | str  # a number, or "2x max"

RELATIVE_RULES = ("set", "add", "cap", "floor")
_RELATIVE = re.compile(r"(?:([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*x[\s-]*)?max", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class FeatureEdit:
    """The new activation of one feature is f + c0 + c1 f + c2 max(f - knot, 0), where its old one is f."""

    feature: Feature
    rule: str
    c0: float = 0.0
    c1: float = 0.0
    c2: float = 0.0
    knot: float = 0.0
    when_active: bool = False
    relative: bool = False  # c0 and knot are in units of the feature's maximum
    value: float | None = field(default=None, compare=False)  # as it was said, of rules with one value

    def is_constant(self) -> bool:
        """True if the change does not depend on f: no encoding is needed."""
        return self.c1 == 0 and self.c2 == 0 and not self.when_active

    def absolute(self, maximum: float) -> "FeatureEdit":
        """A relative edit in the SAE's units, given the feature's maximum."""
        value = None if self.value is None else self.value * maximum
        return replace(self, c0=self.c0 * maximum, knot=self.knot * maximum, relative=False, value=value)

    def said_value(self) -> Value | None:
        """What ``Edit`` was given for this feature; None for rules without a single value."""
        return f"{repr(self.value).removesuffix('.0')}x max" if self.relative else self.value


def _coefficients(rule: str, value: float) -> tuple[float, float, float, float]:
    """(c0, c1, c2, knot) of a rule with one value."""
    return {
        "set": (value, -1.0, 0.0, 0.0),
        "add": (value, 0.0, 0.0, 0.0),
        "scale": (0.0, value - 1.0, 0.0, 0.0),
        "cap": (0.0, 0.0, -1.0, value),
        "floor": (value, -1.0, 1.0, value),
    }[rule]


@dataclass(frozen=True)
class Edit:
    """Changes to features, simultaneous: every one sees the activations that entered.

        Edit.set({12: 8.0}) | Edit.scale({99: 0.0}) | Edit.add({7: 3.0}, when_active=True)

    A feature is a number; or, once the SAE is known (``SAE.plan``), a word or several of its explanations ("music"),
    or an id or address of Neuronpedia. A value of set, add, cap and floor can be relative to the feature's largest
    activation on the SAE's corpus: "2x max", "max". ``when_active=True`` leaves a feature alone where its activation
    is 0. A feature named twice raises ValueError, also across ``|``.
    """

    changes: tuple[FeatureEdit, ...] = ()

    def __post_init__(self) -> None:
        seen: set[Feature] = set()
        for change in self.changes:
            if change.feature in seen:
                raise ValueError(f"Edit: feature {change.feature} is named twice; give each feature one rule")
            seen.add(change.feature)

    @classmethod
    def set(cls, values: Mapping[Any, Value], *, when_active: bool = False) -> "Edit":
        """f becomes v."""
        return cls._from_rule("set", values, when_active)

    @classmethod
    def add(cls, values: Mapping[Any, Value], *, when_active: bool = False) -> "Edit":
        """f becomes f + v."""
        return cls._from_rule("add", values, when_active)

    @classmethod
    def scale(cls, values: Mapping[Any, float], *, when_active: bool = False) -> "Edit":
        """f becomes v f."""
        return cls._from_rule("scale", values, when_active)

    @classmethod
    def cap(cls, values: Mapping[Any, Value], *, when_active: bool = False) -> "Edit":
        """f becomes min(f, v)."""
        return cls._from_rule("cap", values, when_active)

    @classmethod
    def floor(cls, values: Mapping[Any, Value], *, when_active: bool = False) -> "Edit":
        """f becomes max(f, v)."""
        return cls._from_rule("floor", values, when_active)

    @classmethod
    def ablate(cls, features: Iterable[Feature]) -> "Edit":
        """f becomes 0."""
        if isinstance(features, str) or not isinstance(features, Iterable):
            raise TypeError(f"Edit.ablate takes a list of features, got {type(features).__name__}")
        return cls(tuple(FeatureEdit(_feature("ablate", f), "ablate", c1=-1.0) for f in features))

    @classmethod
    def hinge(
        cls, coefficients: Mapping[Any, tuple[float, float, float, float]], *, when_active: bool = False
    ) -> "Edit":
        """f becomes f + c0 + c1 f + c2 max(f - knot, 0), the form that every other rule is a case of.

        Args:
            coefficients: feature -> (c0, c1, c2, knot).
        """
        values = {f: _four_values(f, four) for f, four in _mapping("hinge", coefficients).items()}
        return cls(tuple(FeatureEdit(_feature("hinge", f), "hinge", *v, when_active) for f, v in values.items()))

    @classmethod
    def _from_rule(cls, rule: str, values: Mapping[Any, Value], when_active: bool) -> "Edit":
        changes = []
        for feature, said in _mapping(rule, values).items():
            value, relative = _value(rule, feature, said)
            coefficients = _coefficients(rule, value)
            changes.append(FeatureEdit(_feature(rule, feature), rule, *coefficients, when_active, relative, value))
        return cls(tuple(changes))

    @property
    def features(self) -> tuple[Feature, ...]:
        """The edited features as they were named, in that order."""
        return tuple(change.feature for change in self.changes)

    def __or__(self, other: "Edit") -> "Edit":
        if not isinstance(other, Edit):
            return NotImplemented
        return Edit(self.changes + other.changes)

    def __len__(self) -> int:
        return len(self.changes)


def _mapping(rule: str, values: object) -> Mapping:
    if not isinstance(values, Mapping):
        raise TypeError(f"Edit.{rule} takes {{feature: value}}, got {type(values).__name__}")
    return values


def _feature(rule: str, feature: object) -> Feature:
    if isinstance(feature, str) and any(letter.isalpha() for letter in feature):
        return " ".join(feature.split())
    if isinstance(feature, bool) or not isinstance(feature, Integral):
        raise TypeError(f"Edit.{rule}: a feature is a whole number, got {feature!r}; a name has letters")
    if feature < 0:
        raise ValueError(f"Edit.{rule}: a feature is counted from 0, got {feature}")
    return int(feature)


def _value(rule: str, feature: object, value: object) -> tuple[float, bool]:
    """(number, whether it counts in maxima of the feature)"""
    if not isinstance(value, str):
        return _number(rule, feature, value), False
    relative = _RELATIVE.fullmatch(value.strip())
    if relative is None:
        raise TypeError(
            f"Edit.{rule}: the value of feature {feature} should be a number, got {value!r}"
            + ('; or relative to its maximum, as in "2x max"' if rule in RELATIVE_RULES else "")
        )
    if rule not in RELATIVE_RULES:
        raise ValueError(
            f"Edit.{rule}: the value of feature {feature} is a factor of the activation itself, got {value!r}; "
            f"{', '.join(RELATIVE_RULES)} take values relative to the maximum"
        )
    return _number(rule, feature, float(relative[1] or 1)), True


def _number(rule: str, feature: object, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Edit.{rule}: the value of feature {feature} should be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"Edit.{rule}: the value of feature {feature} should be finite, got {value}")
    return float(value)


def _four_values(feature: object, values: object) -> tuple[float, float, float, float]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 4:
        raise ValueError(f"Edit.hinge: feature {feature} should have (c0, c1, c2, knot), got {values!r}")
    c0, c1, c2, knot = (_number("hinge", feature, v) for v in values)
    return c0, c1, c2, knot


VALUE_RULES: dict[str, Callable[..., Edit]] = {
    "set": Edit.set,
    "add": Edit.add,
    "scale": Edit.scale,
    "cap": Edit.cap,
    "floor": Edit.floor,
}
