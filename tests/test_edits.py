"""What the user says: rules, joining, and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from sparsesteer import Edit
from sparsesteer.edits import FeatureEdit

COEFFICIENTS = [
    (Edit.set({3: 8}), (8, -1, 0, 0)),
    (Edit.add({3: 8}), (8, 0, 0, 0)),
    (Edit.scale({3: 8}), (0, 7, 0, 0)),
    (Edit.ablate([3]), (0, -1, 0, 0)),
    (Edit.cap({3: 8}), (0, 0, -1, 8)),
    (Edit.floor({3: 8}), (8, -1, 1, 8)),
    (Edit.hinge({3: (1, 2, 3, 4)}), (1, 2, 3, 4)),
    (Edit.hinge({3: [1, 2, 3, 4]}), (1, 2, 3, 4)),
]


@pytest.mark.parametrize("edit, want", COEFFICIENTS)
def test_coefficients(edit, want):
    (change,) = edit.changes
    assert (change.feature, change.c0, change.c1, change.c2, change.knot, change.when_active) == (3, *want, False)


RELATIVE = [
    ("set", "2x max", (2, -1, 0, 0)),
    ("set", "max", (1, -1, 0, 0)),
    ("set", " 0.5X-Max ", (0.5, -1, 0, 0)),
    ("add", "-1e-1x max", (-0.1, 0, 0, 0)),
    ("cap", ".5xmax", (0, 0, -1, 0.5)),
    ("floor", "3.x max", (3, -1, 1, 3)),
]


@pytest.mark.parametrize("rule, value, want", RELATIVE)
def test_relative_values_are_in_units_of_the_maximum(rule, value, want):
    (change,) = getattr(Edit, rule)({3: value}).changes
    assert change.relative and (change.c0, change.c1, change.c2, change.knot) == want
    absolute = change.absolute(4.0)
    assert absolute == getattr(Edit, rule)({3: 4.0 * change.value}).changes[0] and not absolute.relative


@pytest.mark.parametrize(
    "value, said", [("2.0x-max", "2x max"), ("max", "1x max"), ("-.25xmax", "-0.25x max"), (2, 2.0)]
)
def test_what_was_said_can_be_said_again(value, said):
    (change,) = Edit.set({3: value}).changes
    assert change.said_value() == said and Edit.set({3: said}).changes == (change,)


def test_features_have_names():
    edit = Edit.set({"music": 8, " big \n cats": "2x max"}) | Edit.ablate(["gpt2-small/8-res-jb/123"])
    assert edit.features == ("music", "big cats", "gpt2-small/8-res-jb/123")
    with pytest.raises(ValueError, match="feature big cats is named twice"):
        edit | Edit.ablate(["big  cats"])


@pytest.mark.parametrize("rule", ["set", "add", "scale", "cap", "floor"])
def test_when_active(rule):
    (change,) = getattr(Edit, rule)({3: 8}, when_active=True).changes
    assert change.when_active and not change.is_constant()


def test_only_an_ungated_addition_is_constant():
    edit = Edit.add({0: 1}) | Edit.scale({1: 1}) | Edit.scale({2: 2}) | Edit.set({3: 1}) | Edit.cap({4: 1})
    assert [change.is_constant() for change in edit.changes] == [True, True, False, False, False]


def test_joining_keeps_the_order_and_both_sides():
    left, right = Edit.set({5: 1, 2: 2}), Edit.ablate([9])
    joined = left | right
    assert joined.features == (5, 2, 9) and len(joined) == 3
    assert len(left) == 2 and len(right) == 1 and len(Edit()) == 0
    assert joined == Edit.set({5: 1, 2: 2}) | Edit.ablate([9])


@pytest.mark.parametrize("number", [np.float32(1.5), np.int64(2), Fraction(3, 2), 2], ids=repr)
def test_any_kind_of_number_is_a_value(number):
    (change,) = Edit.set({np.int64(3): number}).changes
    assert change == FeatureEdit(3, "set", float(number), -1.0) and type(change.feature) is int


TWICE = [
    lambda: Edit.set({3: 1}) | Edit.add({3: 1}),
    lambda: Edit.ablate([3, 4, 3]),
    lambda: Edit.add({1: 2}) | Edit.set({3: 1}) | Edit.cap({3: 1}),
]


@pytest.mark.parametrize("make", TWICE)
def test_a_feature_twice_raises(make):
    with pytest.raises(ValueError, match="feature 3 is named twice"):
        make()


WRONG = [
    (lambda: Edit.set({3: float("nan")}), ValueError, "value of feature 3 should be finite, got nan"),
    (lambda: Edit.floor({3: float("inf")}), ValueError, "should be finite, got inf"),
    (lambda: Edit.hinge({3: (0, 1, 2, float("nan"))}), ValueError, "should be finite"),
    (lambda: Edit.hinge({3: (0, 1, 2)}), ValueError, r"feature 3 should have \(c0, c1, c2, knot\)"),
    (lambda: Edit.hinge({3: 5}), ValueError, r"\(c0, c1, c2, knot\), got 5"),
    (lambda: Edit.set({-1: 2}), ValueError, "counted from 0, got -1"),
    (lambda: Edit.ablate([-1]), ValueError, "counted from 0, got -1"),
    (lambda: Edit.set({1.0: 2}), TypeError, "a feature is a whole number, got 1.0"),
    (lambda: Edit.set({True: 2}), TypeError, "a feature is a whole number, got True"),
    (lambda: Edit.set({"3": 2}), TypeError, "a feature is a whole number, got '3'"),
    (lambda: Edit.set({3: "2"}), TypeError, "should be a number, got '2'; or relative to its maximum"),
    (lambda: Edit.scale({3: "2"}), TypeError, "should be a number, got '2'$"),
    (lambda: Edit.scale({3: "2x max"}), ValueError, "a factor of the activation itself, got '2x max'; set, add, cap"),
    (lambda: Edit.set({3: "2 max"}), TypeError, "should be a number, got '2 max'"),
    (lambda: Edit.set({3: "nanx max"}), TypeError, "should be a number, got 'nanx max'"),
    (lambda: Edit.set({3: "9e999x max"}), ValueError, "should be finite, got inf"),
    (lambda: Edit.hinge({3: (0, 1, 2, "max")}), TypeError, "should be a number, got 'max'"),
    (lambda: Edit.hinge({3: "max!"}), ValueError, r"should have \(c0, c1, c2, knot\)"),
    (lambda: Edit.set({"-1": 2}), TypeError, "a feature is a whole number, got '-1'; a name has letters"),
    (lambda: Edit.ablate([" "]), TypeError, "a feature is a whole number, got ' '"),
    (lambda: Edit.set({3: True}), TypeError, "should be a number, got True"),
    (lambda: Edit.set({3: None}), TypeError, "should be a number, got None"),
    (lambda: Edit.set({3: torch.ones(2)}), TypeError, "should be a number, got tensor"),
    (lambda: Edit.set([3]), TypeError, r"takes \{feature: value\}, got list"),
    (lambda: Edit.ablate(3), TypeError, "takes a list of features, got int"),
    (lambda: Edit.ablate("3"), TypeError, "takes a list of features, got str"),
    (lambda: Edit.set({3: 1}) | {4: 1}, TypeError, "unsupported operand"),
]


@pytest.mark.parametrize("make, error, message", WRONG)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
