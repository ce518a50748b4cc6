"""What ``ss.record`` sees of a model, steered or not, and that the model sees nothing of it."""

import threading
from contextlib import ExitStack

import models
import pytest
import torch
from models import WIDTH, build, hidden_states, prompts
from test_hooks import hook_count
from torch import nn

import sparsesteer as ss
from sparsesteer import Edit

pytestmark = pytest.mark.usefixtures("one_thread")

SITE, N_FEATURES = 1, 48
FEATURES = [12, 3, 40]


def make_sae(activation=None, seed=1, site="blocks.1.hook_resid_post", width=WIDTH, **options):
    generator = torch.Generator().manual_seed(seed)
    return ss.SAE(
        W_enc=torch.randn(width, N_FEATURES, generator=generator),
        W_dec=torch.randn(N_FEATURES, width, generator=generator),
        b_enc=torch.randn(N_FEATURES, generator=generator) * 0.1,
        activation=activation or ss.ReLU(),
        site=ss.Site(hook_name=site),
        **options,
    )


@pytest.fixture
def llama():
    return models.llama()


@pytest.fixture
def sae():
    return make_sae()


def activations(h, sae, features=FEATURES):
    """[B * T, M]"""
    order = sorted(features)
    f = ss.ops.activations(h, sae.plan(Edit.ablate(features))).flatten(0, 1)
    return f[:, [order.index(feature) for feature in features]]


@torch.no_grad()
@pytest.mark.parametrize("family", tuple(models.BLOCKS))
def test_it_is_what_the_sae_says_of_the_hidden_states(family, sae):
    model, ids = build(family), prompts()
    plain = model(ids, output_hidden_states=True)
    with ss.record(model, sae, FEATURES) as recording:
        recorded = model(ids, output_hidden_states=True)
    assert torch.equal(recorded.logits, plain.logits)
    expected = activations(plain.hidden_states[SITE + 1], sae)
    assert torch.equal(recording.before, expected) and torch.equal(recording.after, expected)
    assert torch.equal(recording.tokens, ids.flatten())
    assert recording.sequences.tolist() == [0] * 6 + [1] * 6 and recording.positions.tolist() == [*range(6)] * 2
    assert not recording.generated.any() and (expected != 0).any()
    assert [(each.site, each.feature) for each in recording.features] == [
        ("blocks.1.hook_resid_post", feature) for feature in FEATURES
    ]
    assert recording.texts is None


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 1, 2], ids=["around", "between", "inside"])
@pytest.mark.parametrize("site", ["blocks.1.hook_resid_post", "blocks.1.hook_resid_pre"])
def test_before_and_after_steering(llama, place, site):
    sae, ids = make_sae(site=site), prompts()
    first, second = sae.plan(Edit.set({3: 5.0})), sae.plan(Edit.scale({12: 0.5}))
    plain = hidden_states(llama, ids)[2 if site.endswith("post") else 1]
    with ss.steer(llama, first), ss.steer(llama, second):
        logits = llama(ids).logits
    contexts = [ss.steer(llama, first), ss.steer(llama, second)]
    contexts.insert(place, ss.record(llama, sae, FEATURES))
    with ExitStack() as stack:
        recording = [stack.enter_context(context) for context in contexts][place]
        assert torch.equal(llama(ids).logits, logits)
    assert torch.equal(recording.before, activations(plain, sae))
    steered = ss.ops.steer(ss.ops.steer(plain, first), second)
    assert torch.equal(recording.after, activations(steered, sae))
    assert not torch.equal(recording.before, recording.after)


@torch.no_grad()
def test_positions_that_are_not_steered_are_the_same_before_and_after(llama, sae):
    with ss.record(llama, sae, [3]) as recording, ss.steer(llama, sae.plan(Edit.set({3: 9.0})), positions=[0, 4]):
        llama(prompts())
    changed = (recording.before != recording.after)[:, 0].view(2, 6)
    assert changed.tolist() == [[True, False, False, False, True, False]] * 2


@torch.no_grad()
def test_hooks_of_others_and_their_changes(llama, sae):
    """A hook that another puts at the place acts after ours: the recording is of the block and of steering alone."""
    ids, seen = prompts(), []
    plain = hidden_states(llama, ids)[2]
    handle = llama.model.layers[1].register_forward_hook(lambda module, args, h: seen.append(h) or h * 2)
    with ss.record(llama, sae, FEATURES) as recording:
        llama(ids)
    handle.remove()
    assert torch.equal(seen[0], plain) and torch.equal(recording.after, activations(plain, sae))


@torch.no_grad()
def test_several_sites_with_saes_of_their_own(llama):
    saes, ids = {0: make_sae(seed=2), "model.layers.2": make_sae(seed=3)}, prompts()
    states = hidden_states(llama, ids)
    with ss.record(llama, saes, {0: [7, 1], "model.layers.2": [5]}) as recording:
        llama(ids)
    assert [str(each) for each in recording.features] == [
        "feature 7 at blocks.0.hook_resid_post", "feature 1 at blocks.0.hook_resid_post", "feature 5 at model.layers.2",
    ]  # fmt: skip
    assert torch.equal(recording.at(0).before, activations(states[1], saes[0], [7, 1]))
    handle_of_last = recording.at("model.layers.2").before  # hidden_states ends behind the norm
    seen = []
    handle = llama.model.layers[2].register_forward_hook(lambda module, args, h: seen.append(h))
    llama(ids)
    handle.remove()
    assert torch.equal(handle_of_last, activations(seen[0], saes["model.layers.2"], [5]))


@torch.no_grad()
def test_one_sae_at_several_sites_and_one_list_for_several_saes(llama, sae):
    ids = prompts()
    with ss.record(llama, sae, {0: [7], 1: [7]}) as first, ss.record(llama, {0: sae, 1: sae}, [7]) as second:
        llama(ids)
    assert torch.equal(first.before, second.before)
    assert not torch.equal(first.before[:, 0], first.before[:, 1])


EDITS = Edit.set({3: 5.0}) | Edit.add({30: 1.0})


@torch.no_grad()
@pytest.mark.parametrize("activation", [ss.ReLU(), ss.TopK(6), ss.JumpReLU(0.5)], ids=["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("how", ["edit", "plan", "reconstruct", "loaded"])
def test_what_an_edit_or_a_plan_edits(llama, activation, how, tmp_path):
    sae, ids = make_sae(activation), prompts()
    h = hidden_states(llama, ids)[2]
    given = EDITS if how == "edit" else sae.plan(EDITS, reconstruct=how == "reconstruct")
    if how == "loaded":
        given = ss.SteeringPlan.load(given.save(tmp_path / "plan.safetensors"))
    with ss.record(llama, sae, given) as recording:
        llama(ids)
    assert [each.feature for each in recording.features] == [3, 30]
    torch.testing.assert_close(recording.before, sae.encode(h).flatten(0, 1)[:, [3, 30]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_plan_without_its_saes_topk(llama):
    """SPARE and others apply ReLU where the SAE was trained with TopK: that is what such a plan edits."""
    sae, ids = make_sae(ss.TopK(2)), prompts()
    h = hidden_states(llama, ids)[2]
    with ss.record(llama, sae, sae.plan(EDITS, activation=ss.ReLU())) as recording:
        llama(ids)
    expected = sae.with_activation(ss.ReLU()).encode(h).flatten(0, 1)[:, [3, 30]]
    torch.testing.assert_close(recording.before, expected, rtol=1e-4, atol=1e-4)
    with ss.record(llama, sae, [3, 30]) as masked:
        llama(ids)
    assert (masked.before == 0).sum() > (recording.before == 0).sum()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_of_the_model(llama, sae, dtype):
    model, ids = llama.to(dtype), prompts()
    plain = model(ids, output_hidden_states=True)
    with ss.record(model, sae, FEATURES) as recording:
        assert torch.equal(model(ids).logits, plain.logits)
    assert torch.equal(recording.before, activations(plain.hidden_states[2], sae))
    assert recording.before.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_gradients_are_those_without(llama, sae):
    ids = prompts()
    llama(ids, labels=ids).loss.backward()
    expected = llama.model.embed_tokens.weight.grad.clone()
    llama.zero_grad()
    with ss.record(llama, sae, FEATURES) as recording:
        llama(ids, labels=ids).loss.backward()
    assert torch.equal(llama.model.embed_tokens.weight.grad, expected) and expected.norm() > 0
    assert not recording.before.requires_grad and len(recording) == 12


def test_inference_mode_gives_ordinary_tensors(llama, sae):
    with ss.record(llama, sae, FEATURES) as recording, torch.inference_mode():
        llama(prompts())
    assert not recording.before.is_inference()
    recording.before.add_(1)


@torch.no_grad()
def test_no_trace_stays_and_each_entry_is_a_new_recording(llama, sae):
    ids = prompts()
    plain = llama(ids).logits
    attributes = {name: set(vars(module)) for name, module in llama.named_modules()}
    recorder = ss.record(llama, sae, FEATURES)
    assert hook_count(llama) == 0
    with recorder as first:
        llama(ids)
        with pytest.raises(RuntimeError, match="entered already"):
            recorder.__enter__()
    with recorder as second:
        llama(ids[:1])
    llama(ids)
    assert len(first) == 12 and len(second) == 6 and second.sequence_numbers == [0]
    assert hook_count(llama) == 0 and torch.equal(llama(ids).logits, plain)
    assert {name: set(vars(module)) for name, module in llama.named_modules()} == attributes


@torch.no_grad()
def test_a_call_that_fails_leaves_nothing(llama, sae):
    with ss.record(llama, sae, FEATURES) as recording:
        with pytest.raises(IndexError):
            llama(torch.tensor([[10**6]]))
        llama(prompts())
    assert len(recording) == 12
    assert hook_count(llama) == 0


@torch.no_grad()
def test_an_input_that_is_written_to_later_is_not_followed(llama, sae):
    ids = prompts()
    want = ids.flatten().tolist()
    with ss.record(llama, sae, FEATURES) as recording:
        llama(ids)
        ids.zero_()
    assert recording.tokens.tolist() == want


@torch.no_grad()
def test_a_plain_torch_model():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    sae, h = make_sae(site="0"), torch.randn(2, 5, WIDTH)
    with ss.record(model, sae, FEATURES) as recording:
        model(h)
        model(h[0])
    expected = activations(model[0](h), sae)
    torch.testing.assert_close(recording.before, torch.cat([expected, expected[:5]]))
    assert set(recording.tokens.tolist()) == {-1}
    assert recording.sequences.tolist() == [0] * 5 + [1] * 5 + [2] * 5


@torch.no_grad()
def test_threads_record_sequences_of_their_own(llama, sae):
    inputs = [prompts(n_rows=1, n_tokens=4 + n, seed=n) for n in (1, 2, 3)]

    def run(ids):
        with torch.no_grad():
            llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)

    alone = []
    for ids in inputs:
        with ss.record(llama, sae, FEATURES) as recording:
            run(ids)
        alone.append(recording)
    with ss.record(llama, sae, FEATURES) as together:
        threads = [threading.Thread(target=run, args=(ids,)) for ids in inputs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert together.sequence_numbers == [0, 1, 2]
    found = {tuple(part.tokens.tolist()): part for part in map(together.sequence, range(3))}
    for each in alone:
        part = found[tuple(each.tokens.tolist())]
        torch.testing.assert_close(part.before, each.before)
        assert part.positions.tolist() == each.positions.tolist()


@torch.no_grad()
def test_a_bounded_recording_and_a_stream(llama, sae):
    ids, calls = prompts(), []
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with ss.record(llama, sae, FEATURES) as whole:
        llama.generate(ids, **options)
    with ss.record(llama, sae, FEATURES, last=5, on_tokens=calls.append) as bounded:
        llama.generate(ids, **options)
    assert len(bounded) == 5 and torch.equal(bounded.before, whole.before[-5:])
    assert [len(call) for call in calls] == [12, 2, 2, 2, 2]
    for name in ("tokens", "sequences", "positions", "generated", "before", "after"):
        assert torch.equal(torch.cat([getattr(call, name) for call in calls]), getattr(whole, name))
    with ss.record(llama, sae, FEATURES, last=0, on_tokens=calls.append) as nothing:
        llama(ids)
    assert len(nothing) == 0 and len(calls) == 6
