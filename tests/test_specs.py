"""Specs: files and objects that say the same, plans equal to those made by hand, digests, damage named by place."""

import json
import random
from dataclasses import replace

import pytest
import torch
from models import llama
from small_sae import F, hidden, make_sae
from test_naming import NEURONPEDIA, named_sae
from test_plans import assert_same
from tiny_model import write_sae

import sparsesteer as ss
from sparsesteer import SAE, Edit, Spec, load_spec
from sparsesteer.specs.spec import SCHEMA_FILE, SaeReference, parse_spec

FULL = """
version: 1
name: sea
description: |
  Talk of the sea.
model: google/gemma-2-2b
sae: {release: a-release, id: layer_20/width_16k}
site: 20
positions: {start: 1}
strength: 0.5
activation: {topk: 7}
reconstruct: true
preserve_norm: true
edits:
- set: {12: 8, music: 2x max}
- add: {gpt2-small/8-res-jb/123: -1}
  when_active: true
- ablate: [5, big cats]
- hinge: {7: [0, -1, 1, 3.5]}
- scale: {8: 0.1}
- set: {9: max}
"""
MUSIC = Edit.set({12: 8, "music": "2x max"}) | Edit.add({f"{NEURONPEDIA}/123": -1}, when_active=True)
REST = Edit.ablate([5, "big cats"]) | Edit.hinge({7: (0, -1, 1, 3.5)}) | Edit.scale({8: 0.1}) | Edit.set({9: "max"})


def write(text, tmp_path, name="spec.yaml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def full():
    return Spec(
        MUSIC | REST,
        sae=SaeReference(release="a-release", id="layer_20/width_16k"),
        model="google/gemma-2-2b",
        site=20,
        positions=slice(1, None),
        strength=0.5,
        activation=ss.TopK(7),
        reconstruct=True,
        preserve_norm=True,
    )


def test_a_file_with_everything(tmp_path):
    spec = load_spec(write(FULL, tmp_path))
    assert spec == full() and spec.edit == MUSIC | REST
    assert spec.name == "sea" and spec.description == "Talk of the sea.\n"
    assert (spec.site, spec.positions, spec.strength, spec.activation.k) == (20, slice(1, None), 0.5, 7)


def test_the_least_file(tmp_path):
    spec = load_spec(write('{"version": 1, "edits": []}', tmp_path, "spec.json"))
    assert spec == Spec(Edit()) and spec.document() == {"version": 1, "edits": []}


SPECS = {
    "full": full,
    "nothing": lambda: Spec(Edit()),
    "indices": lambda: Spec(MUSIC, positions=[0, -1]),
    "everywhere": lambda: Spec(MUSIC, positions=slice(None)),
    "relu": lambda: Spec(REST, activation=ss.ReLU()),
    "identity": lambda: Spec(REST, activation=ss.Identity(), site="model.layers.3"),
    "jumprelu": lambda: Spec(REST, activation=ss.JumpReLU(0.25)),
    "a folder": lambda: Spec(REST, sae=SaeReference(path="../sae", digest="abc")),
    "words that look like something else": lambda: Spec(Edit.set({"no": 1, "1e3": 2, "null": 3, "a: b #": 4})),
    "values in full": lambda: Spec(Edit.scale({3: 0.1, 4: 1e-300}) | Edit.set({5: 1 / 3, 6: "0.1x max"})),
}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("make", SPECS.values(), ids=SPECS)
def test_saved_and_loaded(make, suffix, tmp_path):
    spec = make()
    path = spec.save(tmp_path / f"spec.{suffix}")
    loaded = load_spec(path)
    assert loaded == replace(spec, sae=loaded.sae)
    if spec.sae.path is None:
        assert loaded.sae == spec.sae
    assert loaded.edit == spec.edit and [c.value for c in loaded.edit.changes] == [c.value for c in spec.edit.changes]


def test_the_plan_is_the_one_made_by_hand(tmp_path):
    sae = named_sae()
    text = "{version: 1, site: 7, preserve_norm: true, activation: relu, edits: [{set: {music: 2.5, 9: 2x max}}]}"
    plan = load_spec(write(text, tmp_path)).plan(sae)
    by_hand = sae.plan(Edit.set({0: 2.5, 9: 18.0}), activation=ss.ReLU(), preserve_norm=True)
    assert plan.site.hook_name == "blocks.7.hook_resid_post" and plan.preserve_norm
    h = hidden()
    assert torch.equal(ss.ops.steer(h, plan), ss.ops.steer(h, by_hand))
    assert_same(Spec(Edit.set({9: 18.0})).plan(sae), sae.plan(Edit.set({9: "2x max"})))


def test_a_site_of_the_spec_replaces_the_saes():
    sae = make_sae(site=ss.Site("a model", "blocks.3.hook_in", "blocks.3.hook_mlp_out", "release/sae"))
    plan = Spec(Edit(), site="model.layers.5").plan(sae)
    assert plan.site == ss.Site("a model", "model.layers.5", None, "release/sae")
    assert Spec(Edit()).plan(sae).site == sae.site


def test_the_sae_is_found_beside_the_spec(tmp_path):
    write_sae(tmp_path / "sae")
    path = write("{version: 1, sae: {path: sae}, edits: [{set: {3: 2x max}}]}", tmp_path)
    plan = load_spec(path).plan()
    assert_same(plan, SAE.load_from_disk(tmp_path / "sae").plan(Edit.set({3: "2x max"})))
    moved = load_spec(path).save(tmp_path / "deep" / "er" / "spec.yaml")
    assert load_spec(moved).sae.path == "../../sae"
    assert_same(load_spec(moved).plan(), plan)


def test_an_sae_of_another_digest_is_refused(tmp_path):
    spec = Spec(Edit(), sae=SaeReference(digest=make_sae().digest))
    spec.plan(make_sae())
    for use in (spec.plan, spec.resolved):
        with pytest.raises(ValueError, match="the spec is for the SAE of digest"):
            use(make_sae(ss.ReLU()))
    with pytest.raises(ValueError, match=r"does not say where its SAE is; give it: spec.plan\(sae\)"):
        spec.plan()


def test_steering_a_model_as_the_spec_says():
    model = llama()
    width = model.config.hidden_size
    g = torch.Generator().manual_seed(0)
    sae = SAE(
        W_enc=torch.randn(width, 40, generator=g), W_dec=torch.randn(40, width, generator=g), activation=ss.ReLU()
    )
    ids = torch.tensor([[1, 2, 3, 4]])
    spec = Spec(Edit.add({3: 2.0}), site=1, positions=[1], strength=0.5)
    with torch.no_grad(), spec.steer(model, sae, exclude_special_tokens=[9]):
        steered = model(ids).logits
    with torch.no_grad(), ss.steer(model, {1: sae.plan(Edit.add({3: 1.0}))}, positions=[1]):
        assert torch.equal(model(ids).logits, steered)
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, steered)


def test_equal_specs_have_one_digest():
    a, b = Edit.set({12: 8}) | Edit.ablate([5]), Edit.ablate([5]) | Edit.set({12: 8.0})
    same = [Spec(a), Spec(b), Spec(a, name="x", description="y"), Spec(a, strength=1), Spec(a, positions="all")]
    assert len({spec.digest for spec in same}) == len(set(same)) == 1
    others = [
        Spec(a | Edit.set({1: 1})), Spec(a, strength=2), Spec(a, positions="prompt"), Spec(a, site=3),
        Spec(a, site="3"), Spec(a, model="m"), Spec(a, activation=ss.ReLU()), Spec(a, reconstruct=True),
        Spec(a, preserve_norm=True),
        Spec(a, sae=SaeReference(path="p")), Spec(Edit.set({12: 8}, when_active=True) | Edit.ablate([5])),
        Spec(Edit.set({12: "8x max"}) | Edit.ablate([5])), Spec(Edit.cap({12: 8}) | Edit.ablate([5])),
    ]  # fmt: skip
    assert len({spec.digest for spec in [*same, *others]}) == len(others) + 1


def test_the_digest_does_not_change_between_versions():
    assert full().digest == "f552461ee06815482a90435cb4fc00d7706f7e5c66e487357d828e1b8d3457cb"


def test_resolving_ties_a_spec_to_its_weights():
    sae = named_sae()
    spec = Spec(Edit.set({"music": 8, 9: "2x max"}), name="x")
    resolved = spec.resolved(sae)
    assert resolved.edit == Edit.set({0: 8, 9: 18}) and resolved.sae == SaeReference(digest=sae.digest)
    assert resolved.digest == Spec(Edit.set({9: 18.0, 0: 8.0})).resolved(sae).digest != spec.digest
    assert resolved.resolved(sae) == resolved
    assert resolved.digest != spec.resolved(named_sae(activation=ss.ReLU())).digest
    assert_same(resolved.plan(sae), spec.plan(sae))


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_random_damage_raises_value_errors_or_gives_specs(suffix, tmp_path):
    whole = bytearray(full().save(tmp_path / f"whole.{suffix}").read_bytes())
    chance, path, loaded = random.Random(0), tmp_path / f"damaged.{suffix}", 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(whole))] = chance.choice(b"\n\t :,-'\"[]{}&*!%#@`|>?~.e0x\xff\x00")
        path.write_bytes(damaged)
        try:
            spec = load_spec(path)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        loaded += 1
        assert parse_spec(spec.document()) == spec
    assert 0 < loaded < 150


REFUSED_OBJECTS = [
    (lambda: Spec(Edit(), positions="some"), ValueError, "positions should be"),
    (lambda: Spec(Edit(), positions=torch.ones(1, 4, dtype=torch.bool)), TypeError, "a spec's positions are"),
    (lambda: Spec(Edit(), positions=slice(0, 4, 2)), ValueError, "no step|without a step"),
    (lambda: Spec(Edit(), strength=float("nan")), ValueError, "strength should be finite"),
    (lambda: Spec(Edit(), strength=torch.ones(2)), TypeError, "strength is one number"),
    (lambda: Spec(Edit(), activation=ss.JumpReLU(torch.ones(F))), ValueError, "got JumpReLU with tensors"),
    (lambda: Spec(Edit(), site=-1), ValueError, "Spec: site should be a block's number"),
    (lambda: Spec(Edit(), model=3), ValueError, "Spec: model should be text, got 3"),
    (lambda: Spec(Edit(), sae=SaeReference(release="x")), ValueError, "Spec: sae should be"),
    (lambda: Spec(Edit(), reconstruct=1), ValueError, "Spec: reconstruct should be true or false, got 1"),
]


@pytest.mark.parametrize("make, error, message", REFUSED_OBJECTS)
def test_objects_that_cannot_be_written_down(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_schema_is_of_the_readers_version():
    schema = json.loads(SCHEMA_FILE.read_text())
    assert schema["$id"] == "urn:sparsesteer:spec:1" and schema["properties"]["version"] == {"const": 1}
