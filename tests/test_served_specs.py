"""Specs of a server: what makes two equal, how they are kept, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save
from serving_cases import sae_at, specs

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, SpecStore, spec_files
from sparsesteer.serving.block_names import block_of
from sparsesteer.serving.limits import Limits

EDIT = ss.Edit.set({3: 6.0, 7: 5.0})


@pytest.fixture(scope="module")
def sae():
    return sae_at(1)


def test_equal_content_has_equal_ids_and_any_difference_another(sae):
    spec = ServedSpec(sae.plan(EDIT))
    assert ServedSpec({"model.layers.1": sae.plan(ss.Edit.set({7: 5.0}) | ss.Edit.set({3: 6.0}))}) == spec
    others = [
        ServedSpec(sae.plan(ss.Edit.set({3: 6.0, 7: 5.5}))),
        ServedSpec(sae.plan(EDIT), "prompt"),
        ServedSpec(sae.plan(EDIT), strength=2.0),
        ServedSpec({2: sae.plan(EDIT)}),
        ServedSpec(sae_at(1, seed=2).plan(EDIT)),
    ]
    assert len({spec.id, *(other.id for other in others)}) == 1 + len(others)
    assert len(spec.id) == 16 and int(spec.id, 16) >= 0


@pytest.mark.parametrize("name", specs())
def test_files_keep_every_spec(name):
    spec = specs()[name]
    again = spec_files.from_bytes(spec_files.to_bytes(spec))
    assert again == spec and again.id == spec.id and again.positions == spec.positions
    for place, plan in spec.plans.items():
        assert torch.equal(again.plans[place].encoder, plan.encoder)


def test_a_described_spec_becomes_a_served_one(sae):
    spec = ss.Spec(EDIT, positions="generated", strength=0.5)
    assert ServedSpec.of(spec, sae) == ServedSpec(sae.plan(EDIT), "generated", 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda sae: ServedSpec({}), "no plan"),
        (lambda sae: ServedSpec({1: sae.plan(EDIT), "blocks.2.hook_resid_pre": sae.plan(EDIT)}), "two plans at"),
        (lambda sae: ServedSpec({"blocks.1.hook_mlp_out": sae.plan(EDIT)}), "no place that can be steered"),
        (lambda sae: ServedSpec({"blocks.0.hook_resid_pre": sae.plan(EDIT)}), "no place that can be steered"),
        (lambda sae: ServedSpec(sae_at(1, ss.TopK(4)).plan(EDIT)), r"activation=ss.ReLU\(\)"),
        (lambda sae: ServedSpec(sae.plan(EDIT, reconstruct=True)), "reconstruct plans"),
        (lambda sae: ServedSpec(sae.plan(EDIT), strength=float("nan")), "finite"),
        (lambda sae: ServedSpec(sae.plan(EDIT), slice(0, 9, 2)), "step"),
    ],
    ids=["none", "twice", "place", "embedding", "topk", "reconstruct", "nan", "step"],
)
def test_what_is_no_served_spec(sae, make, message):
    with pytest.raises(ValueError, match=message):
        make(sae)


def test_masks_are_no_positions_of_a_served_spec(sae):
    with pytest.raises(TypeError, match="positions"):
        ServedSpec(sae.plan(EDIT), torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("place", "block"),
    [(3, 3), ("blocks.3.hook_resid_post", 3), ("blocks.3.hook_resid_pre", 2), ("model.layers.3", 3), ("h.3", 3)],
)
def test_places_are_blocks(place, block):
    assert block_of(place) == block


def damaged(sae):
    """(name, bytes, message) of files that are no specs."""
    good = spec_files.to_bytes(ServedSpec(sae.plan(EDIT)))
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])

    def with_document(**changes):
        document = json.loads(header["__metadata__"]["sparsesteer_served_spec"]) | changes
        tensors = {name: torch.zeros(1) for name in ("a",)}
        return save(tensors, metadata={"sparsesteer_served_spec": json.dumps(document)})

    return {
        "empty": (b"", "safetensors"),
        "pickle": (b"\x80\x04K\x01." * 40, "safetensors"),
        "cut": (good[:-20], "safetensors"),
        "other": (save({"x": torch.zeros(2)}), "not a served spec"),
        "newer": (with_document(version=9), "version 9"),
        "no sites": (with_document(sites=[]), "sites should be"),
        "no tensors": (with_document(), "not a complete steering plan"),
        "strength": (with_document(strength="1"), "strength should be"),
        "positions": (with_document(sites={}, positions="some"), "positions should be"),
    }


@pytest.mark.parametrize(
    "name", ["empty", "pickle", "cut", "other", "newer", "no sites", "no tensors", "strength", "positions"]
)
def test_damaged_files_are_refused(sae, name):
    data, message = damaged(sae)[name]
    with pytest.raises(ValueError, match=message):
        spec_files.from_bytes(data)


def test_values_that_are_not_finite_are_refused(sae):
    plan = sae.plan(EDIT)
    plan.delta_bias.fill_(float("inf")) if plan.delta_bias is not None else plan.encoder.fill_(float("inf"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        spec_files.from_bytes(spec_files.to_bytes(ServedSpec(plan)))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(spec_bytes=100), "bytes, at most 100"),
        (Limits(features=1), "edits 2 features, at most 1"),
        (Limits(strength=0.5), "between -0.5 and 0.5"),
    ],
    ids=["bytes", "features", "strength"],
)
def test_limits(sae, limits, message):
    with pytest.raises(ValueError, match=message):
        spec_files.from_bytes(spec_files.to_bytes(ServedSpec(sae.plan(EDIT))), limits=limits)


def test_a_direction_longer_than_the_limit_is_refused(sae):
    spec = ServedSpec(sae.plan(ss.Edit.add({3: 10.0})))
    norm = 10 * sae.W_dec[3].norm().item()
    spec_files.from_bytes(spec_files.to_bytes(spec), limits=Limits(norm=norm * 1.01))
    with pytest.raises(ValueError, match="adds a direction of norm"):
        spec_files.from_bytes(spec_files.to_bytes(spec), limits=Limits(norm=norm * 0.99))


def test_a_store_has_its_specs_again_after_a_restart(sae, tmp_path):
    store = SpecStore(tmp_path)
    spec = ServedSpec(sae.plan(EDIT))
    spec_id = store.add(spec, "polite")
    later = SpecStore(tmp_path)
    assert later.find("polite") == (spec_id, spec) == later.find(spec_id)
    assert later.find("rude") is None
    later.remove(spec_id)
    assert len(SpecStore(tmp_path)) == 0 and not SpecStore(tmp_path).names()


def test_a_store_finds_what_another_process_added(sae, tmp_path):
    early, other = SpecStore(tmp_path), SpecStore(tmp_path)
    spec_id = other.add(ServedSpec(sae.plan(EDIT)), "polite")
    assert early.find("polite")[0] == spec_id


def test_a_name_moves_to_another_spec_and_ids_stay(sae, tmp_path):
    store = SpecStore(tmp_path)
    first = store.add(ServedSpec(sae.plan(EDIT)), "polite")
    second = store.add(ServedSpec(sae.plan(EDIT), "prompt"), "polite")
    assert store.find("polite")[0] == second != first == store.find(first)[0]
    with pytest.raises(ValueError, match="id of another spec"):
        store.add(ServedSpec(sae.plan(EDIT)), second)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a@1", ".hidden", "x" * 65, "a b", "a\n", None])
def test_names_that_are_none(sae, tmp_path, name):
    store = SpecStore(tmp_path)
    with pytest.raises(ValueError, match="a spec's name has"):
        store.find(name)
    if name is not None:
        with pytest.raises(ValueError, match="a spec's name has"):
            store.add(ServedSpec(sae.plan(EDIT)), name)
    assert len(store) == 0


def test_links_out_of_the_folder_are_refused(sae, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "specs"
    spec_id = SpecStore(outside).add(ServedSpec(sae.plan(EDIT)))
    folder.mkdir()
    (folder / f"{spec_id}.safetensors").symlink_to(outside / f"{spec_id}.safetensors")
    with pytest.raises(ValueError, match="leads out of"):
        SpecStore(folder)


def test_a_file_under_the_name_of_another_spec_is_refused(sae, tmp_path):
    spec_id = SpecStore(tmp_path).add(ServedSpec(sae.plan(EDIT)))
    (tmp_path / f"{spec_id}.safetensors").rename(tmp_path / f"{'0' * 16}.safetensors")
    with pytest.raises(ValueError, match="files are named by what they hold"):
        SpecStore(tmp_path)
