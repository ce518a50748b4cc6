"""Explanations: looking up by feature and by word, files that are whole, damaged or foreign, and the one we ship."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_model import N_FEATURES, write_sae

from sparsesteer import SAE, Explanations
from sparsesteer.cli.models import DEMO_SAE_FOLDER
from sparsesteer.explanations import FILE_NAME, ScoredWord

LISTS = [
    [("Sea", 1.0), ("ship", 3.0), ("waves", 2.0)],
    [],
    [("ship", 4.0), ("cargo", 1.5)],
    [("big cats", 2.0), ("cats", 1.0), ("CATS", 1.5)],
    [("étoile", -1.0)],
]


def explanations(lists=LISTS, **options):
    made = {"method": "by hand", "method_version": "1", "model": "a model", "about": "of a test", "details": {"k": 3}}
    return Explanations.of(lists, **(made | options))


def found(text):
    return [(match.feature, match.score) for match in explanations().search(text)]


def test_words_of_a_feature_come_strongest_first():
    e = explanations()
    assert e[0] == (ScoredWord("ship", 3.0), ScoredWord("waves", 2.0), ScoredWord("Sea", 1.0))
    assert e[1] == () and len(e) == 5
    for feature in (-1, 5):
        with pytest.raises(IndexError, match=f"feature {feature} is out of range"):
            e[feature]


def test_search():
    assert found("ship") == found(" SHIP ") == [(2, 4.0), (0, 3.0)]
    assert found("sea") == [(0, 1.0)]
    assert found("ship sea") == [(0, 4.0)]
    assert found("cats") == [(3, 2.0)]  # the best of the entries that have it
    assert found("big cats") == [(3, 4.0)]
    assert found("ÉTOILE") == [(4, -1.0)]
    assert found("shi") == found("ship cats") == []
    with pytest.raises(ValueError, match="no word to look for"):
        found("  ")


def test_a_name_is_the_feature_that_alone_has_it():
    e = explanations()
    assert e.feature("waves") == 0 and e.feature("Cargo ship") == 2
    with pytest.raises(ValueError, match=r"explanations of 2 features.*2 \(ship, cargo\); 0 \(ship, waves, Sea\)$"):
        e.feature("ship")
    with pytest.raises(ValueError, match="'wave' stands in no feature's explanation; close to it: waves"):
        e.feature("wave")
    with pytest.raises(ValueError, match="explanations of 20 features.* and 12 more$"):
        explanations([[("ship", float(i))] for i in range(20)]).feature("ship")


def assert_same(a, b):
    assert a.vocabulary == b.vocabulary
    for name in ("words", "scores", "starts"):
        assert torch.equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("method", "method_version", "model", "about", "details"):
        assert getattr(a, name) == getattr(b, name)


@pytest.mark.parametrize("lists", [LISTS, [[], []], []], ids=["words", "no words", "no features"])
def test_saved_and_loaded(lists, tmp_path):
    e = explanations(lists)
    path = e.save(tmp_path / "new" / FILE_NAME)
    assert_same(Explanations.load(path), e)
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


WRONG = [
    ([[("", 1.0)]], "a word of feature 0 should be text on one line, got ''"),
    ([[], [("two\nlines", 1.0)]], r"a word of feature 1 should be text on one line, got 'two\\nlines'"),
    ([[(3, 1.0)]], "should be text on one line, got 3"),
    ([[("twice", 1.0), ("twice", 2.0)]], "stands twice in the list of feature 0"),
    ([[("word", float("nan"))]], "finite numbers"),
]


@pytest.mark.parametrize("lists, message", WRONG)
def test_lists_that_are_refused(lists, message):
    with pytest.raises(ValueError, match=message):
        explanations(lists)


DAMAGE = {
    "newer version": (lambda t, d: d.update(version=2), "explanations of version 2, this sparsesteer reads 1"),
    "unknown name": (lambda t, d: d.update(colour="red"), "colour"),
    "method of numbers": (lambda t, d: d.update(method=3), "method should be text"),
    "no scores": (lambda t, d: t.pop("scores"), "scores"),
    "fewer scores": (lambda t, d: t.update(scores=t["scores"][:-1].clone()), "one for each word"),
    "inf": (lambda t, d: t["scores"].fill_(float("inf")), "finite numbers"),
    "rising": (lambda t, d: t.update(scores=t["scores"].flip(0)), "should fall"),
    "word outside": (lambda t, d: t["words"].fill_(99), "outside the vocabulary"),
    "negative word": (lambda t, d: t["words"].fill_(-1), "outside the vocabulary"),
    "starts that fall": (lambda t, d: t["starts"][1].fill_(99), "starts should not fall"),
    "starts too short": (lambda t, d: t.update(starts=t["starts"][:-1].clone()), "the number of words"),
    "no starts": (lambda t, d: t.update(starts=t["starts"][:0].clone()), "the number of words"),
    "flat word": (lambda t, d: t.update(words=torch.tensor(1)), "complete explanations"),
    "no text": (lambda t, d: t["vocabulary"].fill_(255), "utf-8"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(damage, message, tmp_path):
    path = explanations().save(tmp_path / FILE_NAME)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        description = json.loads(file.metadata()["sparsesteer.explanations"])
    damage(tensors, description)
    save_file(tensors, path, metadata={"sparsesteer.explanations": json.dumps(description)})
    with pytest.raises(ValueError, match=message) as raised:
        Explanations.load(path)
    assert str(path) in str(raised.value)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / FILE_NAME
    with pytest.raises(FileNotFoundError):
        Explanations.load(path)
    save_file({"words": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not a file of explanations"):
        Explanations.load(path)
    whole = explanations().save(path).read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a readable safetensors file"):
            Explanations.load(path)


def test_an_sae_finds_the_file_beside_it(tmp_path):
    write_sae(tmp_path)
    assert SAE.load_from_disk(tmp_path).explanations is None
    e = explanations([*LISTS, *([[]] * (N_FEATURES - len(LISTS)))])
    e.save(tmp_path / FILE_NAME)
    sae = SAE.load_from_disk(tmp_path)
    assert_same(sae.explanations, e)
    assert_same(SAE.load_from_disk(sae.save(tmp_path / "again")).explanations, e)
    explanations().save(tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match=f"explains 5 features, but the SAE beside it has {N_FEATURES}"):
        SAE.load_from_disk(tmp_path)


def test_the_demonstration_sae_is_explained():
    path = DEMO_SAE_FOLDER / FILE_NAME
    sae = SAE.load_from_disk(DEMO_SAE_FOLDER)
    e = sae.explanations
    assert path.stat().st_size < 1 << 20
    assert len(e) == sae.d_sae and e.method == "logit lens" and e.model == sae.site.model_name
    assert all(len(e[feature]) == 8 for feature in range(0, sae.d_sae, 97))
    assert "examples/explain_demo_sae.py" in e.details["script"] and "Chance reaches" in e.about
    # the example of the commands' help
    assert sae.explanations.feature("elephants") == 2116
