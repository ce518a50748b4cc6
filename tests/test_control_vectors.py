"""Control vectors for llama.cpp: the file's layout and numbers, the layers' count, and plans that are none."""

import builtins

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from small_sae import D, hidden, make_sae

import sparsesteer as ss
from sparsesteer import Edit, Site
from sparsesteer.plans.control_vectors import layer_of

ADD = Edit.add({7: 0.5, 9: -4})


def directions(path):
    """{name: fp32 [D]} of a file."""
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def plan_at(hook_name, edit=ADD, hook_name_out=None, **options):
    return make_sae(site=Site("a model", hook_name, hook_name_out), **options).plan(edit)


def test_the_layout_of_the_file(tmp_path):
    path = plan_at("blocks.16.hook_resid_post").to_gguf(tmp_path / "new" / "cats.gguf", model_hint="llama")
    fields = GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "controlvector"
    assert fields["controlvector.model_hint"].contents() == "llama"
    assert fields["controlvector.layer_count"].contents() == 1
    (tensor,) = directions(path).values()
    assert tensor.name == "direction.16" and tensor.shape.tolist() == [D]
    assert tensor.tensor_type == GGMLQuantizationType.F32
    assert [file.name for file in path.parent.iterdir()] == ["cats.gguf"]


def test_the_vector_is_what_steering_adds(tmp_path):
    plan, h = plan_at("blocks.16.hook_resid_post", ADD | Edit.add({3: 2.5})), hidden()
    path = plan.to_gguf(tmp_path / "v.gguf", model_hint="llama")
    (tensor,) = directions(path).values()
    assert np.array_equal(tensor.data, plan.delta_bias.numpy())
    torch.testing.assert_close(ss.ops.steer(h, plan), h + torch.from_numpy(tensor.data.copy()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_plans_of_other_dtypes_become_fp32(dtype, tmp_path):
    plan = plan_at("blocks.2.hook_resid_post").to(dtype=dtype)
    (tensor,) = directions(plan.to_gguf(tmp_path / "v.gguf", model_hint="llama", strength=-3)).values()
    assert np.array_equal(tensor.data, (plan.delta_bias.double() * -3).float().numpy())


def test_several_layers_in_one_file(tmp_path):
    plans = {layer: plan_at("anywhere", Edit.add({layer: 1.0})) for layer in (20, 3, 11)}
    path = ss.save_gguf(plans, tmp_path / "v.gguf", model_hint="gemma2", strength=2.0)
    read = directions(path)
    assert list(read) == ["direction.3", "direction.11", "direction.20"]
    assert GGUFReader(path).fields["controlvector.layer_count"].contents() == 3
    for layer, plan in plans.items():
        assert np.array_equal(read[f"direction.{layer}"].data, (plan.delta_bias * 2).numpy())


LAYERS = {
    "blocks.16.hook_resid_post": 16,
    "blocks.16.hook_resid_pre": 15,
    "model.layers.16": 16,
    "model.language_model.layers.3": 3,
    "transformer.h.11": 11,
    "gpt_neox.layers.0": 0,
    "layers.2": 2,
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_block_of_a_site(name):
    assert layer_of(Site("a model", name)) == layer_of(Site("a model", "elsewhere", name)) == LAYERS[name]


@pytest.mark.parametrize("name", [None, "blocks.3.hook_mlp_out", "model.layers.3.mlp", "hook_embed", "layers", "mlp.3"])
def test_a_site_that_does_not_name_a_block(name, tmp_path):
    plan = plan_at(name)
    with pytest.raises(ValueError, match=f"{name or 'a plan without a site'}: the name does not say.*give layer="):
        plan.to_gguf(tmp_path / "v.gguf", model_hint="llama")
    assert list(directions(plan.to_gguf(tmp_path / "v.gguf", model_hint="llama", layer=4))) == ["direction.4"]


@pytest.mark.parametrize("name, block", [("blocks.0.hook_resid_post", 0), ("blocks.0.hook_resid_pre", -1)])
def test_llama_cpp_has_no_vector_for_the_first_block(name, block, tmp_path):
    with pytest.raises(
        ValueError, match=f"blocks 1 and up, counted from 0; it has no control vector for block {block}"
    ):
        plan_at(name).to_gguf(tmp_path / "v.gguf", model_hint="llama")


NO_VECTORS = {
    "set": (
        lambda: plan_at(None, Edit.set({3: 1, 5: 2}) | ADD),
        "is conditional: what it does to features 3, 5 depends",
    ),
    "gated": (lambda: plan_at(None, Edit.add({3: 1}, when_active=True)), "only Edit.add without when_active"),
    "many": (lambda: plan_at(None, Edit.ablate(range(9))), "features 0, 1, 2, 3, 4, 5, 6, 7, ... depends"),
    "nothing": (lambda: plan_at(None, Edit()), "changes nothing"),
    "adds 0": (lambda: plan_at(None, Edit.add({3: 0})), "changes nothing"),
    "normalises": (lambda: plan_at(None, normalize="layer_norm"), "differs from token to token"),
    "keeps norms": (lambda: make_sae().plan(ADD, preserve_norm=True), "it keeps each token's norm"),
    "reconstructs": (lambda: make_sae().plan(ADD, reconstruct=True), "replaces the stream by a reconstruction"),
    "too large": (lambda: plan_at(None, Edit.add({3: 1e38})), "times 1000.0 does not fit fp32"),
}


@pytest.mark.parametrize("make, message", NO_VECTORS.values(), ids=NO_VECTORS)
def test_plans_that_are_no_constant_vector(make, message, tmp_path):
    with pytest.raises(ValueError, match=message.replace("...", r"\.\.\.")):
        ss.save_gguf({5: make()}, tmp_path / "v.gguf", model_hint="llama", strength=1000.0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_set_of_plans(tmp_path):
    plan = plan_at("blocks.2.hook_resid_post")
    narrow = ss.SAE(W_enc=torch.ones(5, 3), W_dec=torch.ones(3, 5), activation=ss.ReLU()).plan(Edit.add({0: 1}))
    for plans, message in (
        ({}, "takes plans by block"),
        (plan, "takes plans by block"),
        ({"blocks.2.hook_resid_post": plan}, "no control vector for block 'blocks.2.hook_resid_post'"),
        ({True: plan}, "no control vector for block True"),
        ({2: plan, 3: narrow}, r"of different widths, \[5, 48\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ss.save_gguf(plans, tmp_path / "v.gguf", model_hint="llama")


def test_without_gguf_the_package_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install sparsesteer\[gguf\]"):
        plan_at("blocks.2.hook_resid_post").to_gguf(tmp_path / "v.gguf", model_hint="llama")
