"""Runtime steering by features whose meaning is known: amplification, calibration and gap-fill."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from sparsesteer.activations import ReLU
from sparsesteer.edits import Edit
from sparsesteer.explanations import Explanations
from sparsesteer.naming import feature_of
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE

RULES = ("amplify", "calibrate", "gap_fill")


class MISteering:
    """Steering by a set S of features, as arXiv 2502.15576 does for defence, at every token of prompt and answer.

        steering = ss.MISteering(sae, features)
        with ss.steer(model, steering.plan("gap_fill", 2.5)):
            model.generate(**inputs)

    With f = ReLU(z) of the features in S (a TopK SAE is read without its mask) and W their decoder rows:

        amplify     x' = x + a sum_S f_j W_j
        calibrate   x' = x - sum_S f_j W_j + a mean_S W_j
        gap_fill    x' = x + a sum_S (g_j / sum_S g) W_j  with g_j = max(a - f_j, 0), then given the length of x

    Gap-fill is the released code's form, here with 0 added where no gap is left, which is 0/0 there. Amplification and
    calibration are our reading of the paper's two strategies: its own equations were not at hand.

    Args:
        features: numbers, or words and ids by which edits name features (``Edit``).

    Raises:
        ValueError: no features, one that the SAE lacks or that is named twice.
        TypeError: something else than an SAE and a list of features.
    """

    def __init__(self, sae: SAE, features: Iterable[Any]) -> None:
        if not isinstance(sae, SAE):
            raise TypeError(f"MISteering: sae should be an SAE, got {type(sae).__name__}")
        if isinstance(features, str) or not isinstance(features, Iterable):
            raise TypeError(f"MISteering takes a list of features, got {type(features).__name__}")
        self.sae = sae
        self.features = [_number(sae, feature) for feature in features]
        if not self.features:
            raise ValueError(
                "MISteering: no features were given; was none selected? (docs/methods/mutual-information.md)"
            )
        if len(set(self.features)) < len(self.features):
            twice = next(feature for feature in self.features if self.features.count(feature) > 1)
            raise ValueError(f"MISteering: feature {twice} is named twice")

    @classmethod
    def labelled(cls, sae: SAE, explanations: Explanations, label: str | None = None) -> "MISteering":
        """With the features that were selected: labelled, and judged "yes" by a majority of three votes.

        Args:
            label: only those of this label.

        Raises:
            ValueError: none was.
        """
        return cls(sae, selected(explanations, label))

    def edit(self, rule: str, amount: float) -> Edit:
        """What ``plan`` lowers."""
        if rule not in RULES:
            raise ValueError(f"MISteering: the rule should be one of {', '.join(RULES)}, got {rule!r}")
        if isinstance(amount, bool) or not isinstance(amount, Real) or not math.isfinite(amount):
            raise ValueError(f"MISteering: the amount should be a finite number, got {amount!r}")
        value = float(amount)
        if rule == "amplify":
            return Edit.scale({feature: 1 + value for feature in self.features})
        if rule == "calibrate":
            return Edit.set({feature: value / len(self.features) for feature in self.features})
        if value <= 0:
            raise ValueError(f"MISteering: gap_fill raises activations to an amount above 0, got {amount!r}")
        return Edit.hinge({feature: (value, -1.0, 1.0, value) for feature in self.features})

    def plan(self, rule: str, amount: float) -> SteeringPlan:
        """A plan for ``ss.steer``, files, banks and servers.

        Args:
            rule: "amplify", by ``amount`` times the activation; "calibrate", to a mean of ``amount`` decoder rows;
                "gap_fill", toward activations of ``amount`` (2.5 in the released code).

        Raises:
            ValueError: another rule; an amount that is not finite; gap-fill with an amount that is not positive, or of
                an SAE that normalises its input.
        """
        edit, activation = self.edit(rule, amount), ReLU() if self.sae.k else None
        if rule == "gap_fill":
            return self.sae.plan(edit, activation=activation, preserve_norm=True, gap=float(amount))
        return self.sae.plan(edit, activation=activation)

    def __repr__(self) -> str:
        return f"MISteering({len(self.features)} features of {self.sae.site})"


def selected(explanations: Explanations, label: str | None = None) -> list[int]:
    """The features that have a label (or this one) and the judge's "yes", in order.

    Raises:
        ValueError: explanations without labels.
    """
    if explanations.notes is None:
        raise ValueError("these explanations have no labels; `sparsesteer mi label` gives them some")
    found = []
    for feature in range(len(explanations)):
        note = explanations.note(feature)
        if note.get("verdict") == "yes" and note.get("label") and label in (None, note["label"]):
            found.append(feature)
    return found


def _number(sae: SAE, feature: Any) -> int:
    if isinstance(feature, bool) or not isinstance(feature, Integral | str):
        raise TypeError(f"MISteering: a feature is a whole number or a name, got {feature!r}")
    if isinstance(feature, Integral) and feature < 0:
        raise ValueError(f"MISteering: a feature is counted from 0, got {feature}")
    return feature_of(sae, feature if isinstance(feature, str) else int(feature))
