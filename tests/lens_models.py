"""Tiny models of TransformerLens, and what stands at their hook points."""

import pytest
import torch
from families import N_LAYERS, VOCABULARY, WIDTH, build

import sparsesteer as ss
from sparsesteer.model.hook_points import FAMILIES, family
from sparsesteer.model.sites import ModelSites

lens = pytest.importorskip("transformer_lens", reason="transformer-lens, a part of the extra 'lens', is not installed")
builder = pytest.importorskip("transformer_lens.model_bridge.sources._bridge_builder")

BLOCK = N_LAYERS - 1


def points(model):
    """The names of all hook points in a block of a transformers model."""
    inside = FAMILIES[family(model.config)]
    return [f"blocks.{BLOCK}.{point}" for point in ("hook_resid_pre", *inside, "hook_resid_post")]


def bridge(name):
    """TransformerLens around a model of its own, since it rebuilds what it is given."""
    model = build(name)
    bridged = builder.build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    bridged.set_use_hook_mlp_in(True)
    return bridged


def hooked(**settings):
    config = lens.HookedTransformerConfig(
        n_layers=N_LAYERS, d_model=WIDTH, n_ctx=64, d_head=8, n_heads=4, d_vocab=VOCABULARY, d_mlp=48,
        act_fn="gelu_new", normalization_type="LN", positional_embedding_type="rotary", rotary_dim=8, device="cpu",
        **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = lens.HookedTransformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def read_at(model, name, ids):
    caught = []
    detach = ModelSites.of(model).resolve(name).attach(lambda h: caught.append(h.clone()) or h)
    model(ids)
    detach()
    return caught[0]


def is_read_only(model, name):
    return ModelSites.of(model).resolve(name).read_only


def by_lens(model, name, plan, ids):
    """Logits where TransformerLens's own hook applies the plan."""

    def change(tensor, hook):
        return ss.ops.steer(tensor.flatten(2), plan).view(tensor.shape)

    return model.run_with_hooks(ids, fwd_hooks=[(name, change)])
