"""Edits as the command line writes them: what they mean, and the bad piece named."""

import pytest

from sparsesteer import Edit
from sparsesteer.cli.edit_grammar import parse_edit, parse_edits


def changes(edit):
    return {(c.feature, c.rule, c.c0, c.c1, c.c2, c.knot, c.when_active, c.relative) for c in edit.changes}


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("set:123=8", Edit.set({123: 8.0})),
        ("scale:99=0,7=2.5", Edit.scale({99: 0.0, 7: 2.5})),
        ("add:7=-3:active", Edit.add({7: -3.0}, when_active=True)),
        ("cap:1=1e-2", Edit.cap({1: 0.01})),
        ("floor:4=2:active", Edit.floor({4: 2.0}, when_active=True)),
        ("ablate:5,6", Edit.ablate([5, 6])),
        ("set:5=2x-max,6=0.5x max,7=max", Edit.set({5: "2x max", 6: "0.5x max", 7: "max"})),
        ("floor:5=2xmax:active", Edit.floor({5: "2x max"}, when_active=True)),
        ("set:music=8,9=2", Edit.set({"music": 8, 9: 2})),
        ('set:"music"=8', Edit.set({"music": 8})),
        ('add:"a: b, c=d"=-1:active', Edit.add({"a: b, c=d": -1}, when_active=True)),
        ("ablate:big cats,5", Edit.ablate(["big cats", 5])),
        ("set:gpt2-small/8-res-jb/123=8", Edit.set({"gpt2-small/8-res-jb/123": 8})),
        (
            "cap:https://www.neuronpedia.org/gpt2-small/8-res-jb/123=8:active",
            Edit.cap({"https://www.neuronpedia.org/gpt2-small/8-res-jb/123": 8}, when_active=True),
        ),
    ],
)
def test_edit_grammar(text, edit):
    assert changes(parse_edit(text)) == changes(edit)


def test_edits_join():
    assert changes(parse_edits(["set:1=2", "ablate:3"])) == changes(Edit.set({1: 2.0}) | Edit.ablate([3]))


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("put:1=2", "'put'"),
        ("set", "set:123=8"),
        ("set:", "set:123=8"),
        ("set:1", "'1' should be feature=value"),
        ("set:1=2,", "'' should be feature=value"),
        ("set:?=2", "'?' is not a feature"),
        ('set:""=2', "'\"\"' is not a feature"),
        ("set:a=b=2", "'a=b=2' should be feature=value"),
        ("scale:5=2x-max", "a factor of the activation itself"),
        ("set:5=2x", "'2x' in '5=2x' is not a number, nor like 2x-max"),
        ("set:5=twicemax", "should be a number, got 'twicemax'; or relative"),
        ("set:-1=2", "'-1' is not a feature"),
        ("set:1.5=2", "'1.5' is not a feature"),
        ("set:1=much", "'much' in '1=much' is not a number"),
        ("set:1=", "'' in '1=' is not a number"),
        ("set:1=nan", "finite"),
        ("set:1=2,1=3", "feature 1 is named twice"),
        ("set:1=2:sometimes", "'sometimes'"),
        ("set:1=2:active:active", "set:123=8"),
        ("ablate:1=2", "'1=2' is not a feature"),
        ("ablate:1:active", "inactive feature is 0 already"),
    ],
)
def test_edit_grammar_names_the_bad_piece(text, piece):
    with pytest.raises(ValueError) as error:
        parse_edit(text)
    assert piece in str(error.value)


def test_a_feature_in_two_edits_is_refused():
    with pytest.raises(ValueError, match="feature 1 is named twice"):
        parse_edits(["set:1=2", "ablate:1"])
