"""Models of TransformerLens itself, by their hook names: HookedTransformer and TransformerBridge."""

import models
import pytest
import torch
from families import WIDTH, build
from lens_models import BLOCK, bridge, by_lens, hooked, is_read_only, points, read_at
from models import prompts

import sparsesteer as ss

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated"),
]

BRIDGED_FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "olmo2", "mixtral")


@torch.no_grad()
@pytest.mark.parametrize("name", BRIDGED_FAMILIES)
def test_a_bridge_is_steered_as_the_model_in_it(name):
    model, bridged, ids = build(name), bridge(name), prompts()
    for point in points(model):
        if is_read_only(model, point):
            continue
        plan = models.plan(width=read_at(model, point, ids).shape[-1])
        with ss.steer(model, {point: plan}, positions=slice(1, 4)):
            expected = model(ids).logits
        with ss.steer(bridged, {point: plan}, positions=slice(1, 4)):
            torch.testing.assert_close(bridged(ids), expected, atol=1e-4, rtol=1e-4, msg=point)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated", slice(2, None), [0, -2]], ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_bridge_generates_as_the_model_in_it(positions, use_cache):
    model, bridged, ids = build("llama"), bridge("llama"), prompts()
    model.generation_config.eos_token_id = None
    plan = models.plan()
    with ss.steer(model, {0: plan}, positions=positions):
        expected = model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=use_cache)
    with ss.steer(bridged, {0: plan}, positions=positions):
        tokens = bridged.generate(
            ids, max_new_tokens=5, do_sample=False, stop_at_eos=False, use_past_kv_cache=use_cache, verbose=False
        )
    assert torch.equal(tokens, expected)


HOOKED_POINTS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_in", "hook_mlp_out",
    "attn.hook_z", "mlp.hook_post", "ln2.hook_normalized",
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("point", HOOKED_POINTS)
def test_a_hooked_transformer_is_steered_as_by_its_own_hooks(point):
    model, ids, name = hooked(use_hook_mlp_in=True), prompts(), f"blocks.{BLOCK}.{point}"
    plan = models.plan(width=48 if point == "mlp.hook_post" else WIDTH)
    _, plain = model.run_with_cache(ids)
    expected = by_lens(model, name, plan, ids)
    with ss.steer(model, {name: plan}):
        assert torch.equal(model(ids), expected)
        _, cache = model.run_with_cache(ids)
    assert not torch.equal(expected, model(ids))
    # hooks of TransformerLens see the steered tensor
    assert torch.equal(cache[name], ss.ops.steer(plain[name].flatten(2), plan).view(plain[name].shape))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated", slice(2, None), [0, -2]], ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_hooked_transformer_generates(positions, use_cache):
    model, ids, plan = hooked(), prompts(), models.plan()
    n_prompt, rows = ids.shape[1], ids
    for _ in range(5):
        marks = {
            "all": torch.ones(rows.shape[1]), "prompt": torch.arange(rows.shape[1]) < n_prompt,
            "last_prompt": torch.arange(rows.shape[1]) == n_prompt - 1,
            "generated": torch.arange(rows.shape[1]) >= n_prompt,
        }.get(positions if isinstance(positions, str) else "")  # fmt: skip
        if marks is None:
            marks = torch.zeros(rows.shape[1])
            marks[positions if isinstance(positions, slice) else [0, n_prompt - 2]] = 1
        strength = marks.float().expand(rows.shape)
        change = [(f"blocks.{BLOCK}.hook_resid_post", lambda h, hook, s=strength: ss.ops.steer(h, plan, s))]
        rows = torch.cat([rows, model.run_with_hooks(rows, fwd_hooks=change)[:, -1].argmax(-1)[:, None]], dim=1)
    with ss.steer(model, {BLOCK: plan}, positions=positions):
        tokens = model.generate(
            ids, max_new_tokens=5, do_sample=False, stop_at_eos=False, use_past_kv_cache=use_cache, verbose=False
        )
    assert torch.equal(tokens, rows)


@torch.no_grad()
def test_a_hooked_transformer_takes_its_own_padding_into_account():
    model, ids, plan = hooked(), prompts(), models.plan()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with ss.steer(model, {BLOCK: plan}, positions=[1]):
        both = model(ids, attention_mask=mask)
        alone = model(ids[:1, 2:])
    torch.testing.assert_close(both[:1, 2:], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_special_tokens_of_a_hooked_transformer():
    model, ids, plan = hooked(), prompts(), models.plan()
    special = [int(ids[0, 2]), int(ids[1, 4])]
    strength = (~torch.isin(ids, torch.tensor(special))).float()
    change = [(f"blocks.{BLOCK}.hook_resid_post", lambda h, hook: ss.ops.steer(h, plan, strength))]
    expected = model.run_with_hooks(ids, fwd_hooks=change)
    with ss.steer(model, {BLOCK: plan}, exclude_special_tokens=special):
        assert torch.equal(model(ids), expected)
        with pytest.raises(ValueError, match="needs a call with input_ids"):
            model.generate(ids, max_new_tokens=2, stop_at_eos=False, verbose=False)


@pytest.mark.parametrize(
    ("point", "switch"),
    [("hook_mlp_in", "use_hook_mlp_in"), ("hook_attn_in", "use_attn_in"), ("attn.hook_result", "use_attn_result")],
)
def test_points_that_are_switched_off(point, switch):
    for model in (hooked(), bridge("llama")):
        setattr(model.cfg, switch, False)
        with pytest.raises(ValueError, match=rf"{point} does nothing .*model.set_{switch}\(True\)"):
            ss.steer(model, {f"blocks.{BLOCK}.{point}": models.plan()})


def test_the_inside_of_a_norm_can_be_read_only():
    for model in (build("llama"), bridge("llama")):
        with pytest.raises(ValueError, match="can be read and not written"):
            ss.steer(model, {f"blocks.{BLOCK}.ln2.hook_normalized": models.plan()})
