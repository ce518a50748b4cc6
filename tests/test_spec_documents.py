"""Documents of specs: what is refused, by its place, and that the published schema says the same."""

import json

import pytest

from sparsesteer.specs.spec import SCHEMA_FILE, parse_spec

GOOD = {
    "least": {"edits": []},
    "numbers as text": {"edits": [{"set": {"12": 8}}, {"ablate": [3, "4", "music"]}]},
    "whole and broken": {"edits": [{"scale": {"1": 0, "2": 0.5, "3": -2}}], "strength": 2},
    "relative": {"edits": [{"floor": {"1": "max", "2": " 2.5x-MAX", "3": "-1e-3xmax"}}]},
    "gated": {"edits": [{"add": {"1": 2}, "when_active": True}, {"ablate": [2], "when_active": False}]},
    "hinge": {"edits": [{"hinge": {"1": [0, 1.5, 2, 3]}}]},
    "site by name": {"edits": [], "site": "blocks.3.hook_resid_post"},
    "first block": {"edits": [], "site": 0},
    "positions": {"edits": [], "positions": "last_prompt"},
    "indices": {"edits": [], "positions": [0, -1]},
    "slice": {"edits": [], "positions": {"start": 1, "stop": -1}},
    "whole slice": {"edits": [], "positions": {}},
    "sae of sae-lens": {"edits": [], "sae": {"release": "r", "id": "i", "digest": "d"}},
    "sae in a folder": {"edits": [], "sae": {"path": "p"}},
    "sae by digest": {"edits": [], "sae": {"digest": "d"}},
    "relu": {"edits": [], "activation": "relu"},
    "topk": {"edits": [], "activation": {"topk": 3}},
    "jumprelu": {"edits": [], "activation": {"jumprelu": 0.5}},
    "names": {"edits": [], "name": "n", "description": "d", "model": "m"},
    "flags": {"edits": [], "reconstruct": False, "preserve_norm": True},
}

BAD = {
    "no edits": ({"edits": ...}, "spec: edits is missing"),
    "newer": ({"version": 2}, "spec: version should be 1, the version that this sparsesteer reads, got 2"),
    "version as truth": ({"version": True}, "version should be 1.*got True"),
    "version as text": ({"version": "1"}, "version should be 1.*got '1'"),
    "unknown": ({"colour": 1}, "spec: 'colour' is not known there; version, name"),
    "edits as a mapping": ({"edits": {"set": {}}}, r"edits should be a list, as in \[{set: {123: 8}}\]"),
    "edit as text": ({"edits": ["set:1=2"]}, r"edits\[0\] should be a mapping from a rule to features"),
    "unknown rule": ({"edits": [{"put": {"1": 2}}]}, r"edits\[0\]: 'put' is not known there; set, add"),
    "two rules": ({"edits": [{"set": {"1": 2}, "add": {"2": 3}}]}, r"edits\[0\] should name one rule.*got set, add"),
    "no rule": ({"edits": [{"when_active": True}]}, r"edits\[0\] should name one rule.*got none"),
    "gate as text": ({"edits": [{"set": {}, "when_active": "yes"}]}, r"edits\[0\].when_active should be true or false"),
    "gated ablation": ({"edits": [{"ablate": [1], "when_active": True}]}, r"edits\[0\].ablate has no when_active"),
    "ablate a mapping": ({"edits": [{"ablate": {"1": 2}}]}, r"edits\[0\].ablate should be a list of features"),
    "ablate a fraction": ({"edits": [{"ablate": [1, 2.5]}]}, r"edits\[0\].ablate\[1\]: .*a whole number, got 2.5"),
    "ablate below 0": ({"edits": [{"ablate": [-1]}]}, r"edits\[0\].ablate\[0\]: .*counted from 0, got -1"),
    "set a list": ({"edits": [{"set": [1]}]}, r"edits\[0\].set should be a mapping of features to values, got \[1\]"),
    "no feature": ({"edits": [{"set": {"-1": 2}}]}, r"edits\[0\].set\['-1'\]: .*a whole number, got '-1'"),
    "value as text": (
        {"edits": [{}, {"set": {"music": "loud"}}][1:]},
        r"edits\[0\].set\['music'\]: .*should be a number, got 'loud'; or relative",
    ),
    "second of two": ({"edits": [{"set": {}}, {"cap": {"1": None}}]}, r"edits\[1\].cap\['1'\]: .*a number, got None"),
    "value as truth": ({"edits": [{"set": {"1": True}}]}, r"edits\[0\].set\['1'\]: .*should be a number, got True"),
    "relative factor": ({"edits": [{"scale": {"1": "2x max"}}]}, r"edits\[0\].scale\['1'\]: .*a factor"),
    "hinge of three": ({"edits": [{"hinge": {"1": [1, 2, 3]}}]}, r"edits\[0\].hinge\['1'\]: .*c0, c1, c2, knot"),
    "hinge of text": ({"edits": [{"hinge": {"1": [1, 2, 3, "max"]}}]}, r"edits\[0\].hinge\['1'\]: .*a number"),
    "site below 0": ({"site": -1}, "site should be a block's number, or the name of a place in the model, got -1"),
    "empty site": ({"site": ""}, "site should be a block's number"),
    "site as truth": ({"site": True}, "site should be a block's number"),
    "positions": ({"positions": "some"}, "positions should be all, prompt, last_prompt, generated, a list of whole"),
    "broken position": ({"positions": [1, 1.5]}, r"positions\[1\] should be a whole number, got 1.5"),
    "step": ({"positions": {"start": 0, "step": 2}}, "positions: 'step' is not known there; start, stop are"),
    "strength": ({"strength": "strong"}, "strength should be a finite number, got 'strong'"),
    "sae as text": ({"sae": "demo"}, r"sae should be {release, id} or {path}, and perhaps {digest}, got 'demo'"),
    "empty sae": ({"sae": {}}, "sae should be {release, id}"),
    "half an sae": ({"sae": {"release": "r"}}, "sae should be {release, id}"),
    "two saes": ({"sae": {"release": "r", "id": "i", "path": "p"}}, "sae should be {release, id}"),
    "sae of numbers": ({"sae": {"path": 3}}, "sae.path should be text, got 3"),
    "unknown activation": ({"activation": "gelu"}, "activation should be relu, identity, {topk"),
    "topk 0": ({"activation": {"topk": 0}}, "activation should be relu"),
    "broken topk": ({"activation": {"topk": 1.5}}, "activation.topk should be a whole number, got 1.5"),
    "two activations": ({"activation": {"topk": 3, "jumprelu": 1}}, "activation should be relu"),
    "flag": ({"reconstruct": "true"}, "reconstruct should be true or false, got 'true'"),
    "name": ({"name": 3}, "name should be text, got 3"),
}

# what a schema of JSON cannot say, or what JSON cannot hold
BEYOND = {
    "a feature twice": ({"edits": [{"set": {"1": 2}}, {"ablate": [1]}]}, "edits: Edit: feature 1 is named twice"),
    "once as text": ({"edits": [{"set": {"1": 2, "01": 3}}]}, "feature 1 is named twice"),
    "inf": ({"edits": [{"set": {"1": float("inf")}}]}, r"edits\[0\].set\['1'\]: .*should be finite, got inf"),
    "NaN strength": ({"strength": float("nan")}, "strength should be a finite number, got nan"),
    "large strength": ({"strength": 10**400}, "strength should be a finite number, got 1000"),
    "large value": ({"edits": [{"set": {"1": 10**400}}]}, r"edits\[0\].set\['1'\]: "),
    "numbers as names": ({1: 2}, "1 is not known there"),
}


def document(changes):
    return {name: value for name, value in ({"version": 1, "edits": []} | changes).items() if value is not ...}


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_good_documents(changes):
    assert parse_spec(document(changes)) == parse_spec(parse_spec(document(changes)).document())


@pytest.mark.parametrize("changes, message", [*BAD.values(), *BEYOND.values()], ids=[*BAD, *BEYOND])
def test_bad_documents_are_refused_by_place(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_spec(document(changes), "spec")
    assert str(raised.value).startswith("spec")


@pytest.mark.parametrize("text", [None, [], "edits", 3])
def test_what_is_no_mapping(text):
    with pytest.raises(ValueError, match="the spec should be a mapping of names to values"):
        parse_spec(text)


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_the_schema_takes_good_documents(changes, validator):
    validator.validate(document(changes))


@pytest.mark.parametrize("changes", [changes for changes, _ in BAD.values()], ids=BAD)
def test_the_schema_refuses_bad_documents(changes, validator):
    assert not validator.is_valid(document(changes))
