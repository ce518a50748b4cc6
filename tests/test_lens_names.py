"""Every hook point by its name: the tensor is TransformerLens's, and an edit there does what its own hook does."""

import families
import models
import pytest
import torch
from families import N_LAYERS, VOCABULARY, WIDTH, build
from lens_models import BLOCK, bridge, by_lens, lens, points, read_at
from models import prompts

import sparsesteer as ss

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated"),
]

# attention and MLP beside each other: no residual between them
PARALLEL = ("phi", "gpt_neox", "falcon", "falcon_two_norms")


@torch.no_grad()
@pytest.mark.parametrize("name", families.CONFIGS)
def test_places_hold_what_transformer_lens_caches(name):
    model, ids = build(name), prompts()
    _, cache = bridge(name).run_with_cache(ids)
    for point in points(model):
        read = read_at(model, point, ids)
        torch.testing.assert_close(read, cache[point].reshape(read.shape), atol=1e-5, rtol=1e-5, msg=point)
    torch.testing.assert_close(read_at(model, "hook_embed", ids), cache["hook_embed"], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", families.CONFIGS)
def test_edits_do_what_hooks_of_transformer_lens_do(name):
    model, bridged, ids = build(name), bridge(name), prompts()
    plain = model(ids).logits
    for point in points(model):
        if point.endswith(("hook_resid_mid", "hook_normalized")):  # see below
            continue
        plan = models.plan(width=read_at(model, point, ids).shape[-1])
        with ss.steer(model, {point: plan}):
            steered = model(ids).logits
        assert (steered - plain).abs().max() > 0.1, point
        torch.testing.assert_close(steered, by_lens(bridged, point, plan, ids), atol=1e-4, rtol=1e-4, msg=point)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in families.CONFIGS if name not in PARALLEL])
def test_the_residual_amid_a_block_goes_on_steered(name):
    """The bridge's own hook of that name reaches the MLP alone, so the block is added up by hand."""
    model, ids, plan = build(name), prompts(), models.plan()
    block = f"blocks.{BLOCK}"
    before = read_at(model, f"{block}.hook_resid_pre", ids) + read_at(model, f"{block}.hook_attn_out", ids)
    edited = ss.ops.steer(before, plan)
    with ss.steer(model, {f"{block}.hook_resid_mid": plan}):
        assert torch.equal(read_at(model, f"{block}.hook_mlp_in", ids), edited)
        after = edited + read_at(model, f"{block}.hook_mlp_out", ids)
        assert torch.equal(read_at(model, f"{block}.hook_resid_post", ids), after)


@torch.no_grad()
def test_the_residual_amid_a_block_is_that_of_a_hooked_transformer():
    conversions = pytest.importorskip("transformer_lens.pretrained.weight_conversions")
    model, ids, plan, name = build("gpt2"), prompts(), models.plan(), f"blocks.{BLOCK}.hook_resid_mid"
    config = lens.HookedTransformerConfig(
        n_layers=N_LAYERS, d_model=WIDTH, n_ctx=64, d_head=8, n_heads=4, d_vocab=VOCABULARY, d_mlp=4 * WIDTH,
        act_fn="gelu_new", normalization_type="LN", device="cpu", eps=model.config.layer_norm_epsilon,
    )  # fmt: skip
    same = lens.HookedTransformer(config)
    same.load_state_dict(conversions.convert_gpt2_weights(model, config), strict=False)
    torch.testing.assert_close(model(ids).logits, same(ids), atol=1e-4, rtol=1e-4)
    with ss.steer(model, {name: plan}):
        torch.testing.assert_close(model(ids).logits, by_lens(same, name, plan, ids), atol=1e-4, rtol=1e-4)
