"""``ss.record`` at every hook point, of transformers models and of TransformerLens's own."""

import pytest
import torch
from families import WIDTH, build
from lens_models import BLOCK, bridge, hooked, is_read_only, points, read_at
from models import prompts
from test_recorder import N_FEATURES, activations, make_sae

import sparsesteer as ss

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated"),
]
FEATURES = list(range(N_FEATURES))
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def sae_at(model, point, ids):
    return make_sae(site=point, width=read_at(model, point, ids).flatten(2).shape[-1])


def assert_recorded(model, point, ids, *, steered):
    """Before is what stands there without edits, after what stands there with them."""
    sae = sae_at(model, point, ids)
    before = activations(read_at(model, point, ids).flatten(2), sae, FEATURES)
    plan = sae.plan(ss.Edit.add({12: 2.0}))
    with ss.record(model, sae, FEATURES) as recording:
        if steered:
            with ss.steer(model, plan):
                model(ids)
                after = activations(read_at(model, point, ids).flatten(2), sae, FEATURES)
        else:
            model(ids)
            after = before
    n_tokens = ids.numel()
    torch.testing.assert_close(recording.before[:n_tokens], before, **CLOSE, msg=point)
    torch.testing.assert_close(recording.after[:n_tokens], after, **CLOSE, msg=point)
    assert not steered or not torch.equal(recording.before, recording.after)
    assert recording.tokens[:n_tokens].tolist() == ids.flatten().tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "mixtral"])
def test_every_hook_point_of_a_transformers_model(name):
    model, ids = build(name), prompts()
    for point in points(model):
        assert_recorded(model, point, ids, steered=not is_read_only(model, point))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_hook_point_of_a_bridge(name):
    model, ids = bridge(name), prompts()
    for point in points(build(name)):
        assert_recorded(model, point, ids, steered=not is_read_only(model, point))


@torch.no_grad()
@pytest.mark.parametrize("point", ["hook_resid_pre", "hook_resid_post", "attn.hook_z", "mlp.hook_post"])
def test_a_hooked_transformer(point):
    assert_recorded(hooked(), f"blocks.{BLOCK}.{point}", prompts(), steered=True)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_a_hooked_transformer_that_generates(use_cache):
    model, ids = hooked(), prompts()
    sae = make_sae(site=f"blocks.{BLOCK}.hook_resid_post")
    with ss.record(model, sae, FEATURES) as recording:
        out = model.generate(
            ids, max_new_tokens=5, do_sample=False, stop_at_eos=False, use_past_kv_cache=use_cache, verbose=False
        )
    assert recording.sequence_numbers == [0, 1]
    h = read_at(model, f"blocks.{BLOCK}.hook_resid_post", out[:, :-1])
    for number, expected in enumerate(activations(h, sae, FEATURES).view(2, -1, len(FEATURES))):
        part = recording.sequence(number)
        torch.testing.assert_close(part.before, expected, **CLOSE)
        assert part.generated.tolist() == [False] * ids.shape[1] + [True] * 4


@torch.no_grad()
def test_calls_that_end_before_the_site_are_not_recorded():
    model, ids = hooked(), prompts()
    with ss.record(model, make_sae(site=f"blocks.{BLOCK}.hook_resid_post"), FEATURES) as recording:
        model(ids, stop_at_layer=BLOCK)
        model(ids[:, :3])
    assert recording.tokens.tolist() == ids[:, :3].flatten().tolist()


@torch.no_grad()
def test_a_transcoder_is_recorded_where_it_reads():
    model, ids = build("llama"), prompts()
    read, written = f"blocks.{BLOCK}.mlp.hook_in", f"blocks.{BLOCK}.hook_mlp_out"
    generator = torch.Generator().manual_seed(0)
    transcoder = ss.SAE(
        W_enc=torch.randn(WIDTH, 48, generator=generator),
        W_dec=torch.randn(48, WIDTH, generator=generator),
        activation=ss.ReLU(),
        site=ss.Site(hook_name=read, hook_name_out=written),
        transcoder=True,
    )
    expected = activations(read_at(model, read, ids), transcoder, FEATURES)
    with ss.record(model, transcoder, FEATURES) as recording, ss.steer(model, transcoder.plan(ss.Edit.add({12: 2.0}))):
        model(ids)
    torch.testing.assert_close(recording.before, expected, **CLOSE)
    assert torch.equal(recording.after, recording.before)
