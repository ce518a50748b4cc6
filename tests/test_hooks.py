"""What a steered model computes, against hooks written by hand, and that no trace of the steering stays."""

import threading

import models
import pytest
import torch
from models import N_LAYERS, WIDTH, block, build, hidden_states, plan, prompts, steered_by_hand
from torch import nn

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = tuple(models.BLOCKS)


def hook_count(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def llama():
    return models.llama()


@torch.no_grad()
def test_logits_equal_a_hook_by_hand(family):
    model, edit, ids = build(family), plan(), prompts()
    with steered_by_hand(block(model, family, 1), lambda h: ss.ops.steer(h, edit)):
        expected = model(ids).logits
    plain = model(ids).logits
    with ss.steer(model, {1: edit}):
        assert torch.equal(model(ids).logits, expected)
    assert (expected - plain).abs().max() > 0.1
    assert torch.equal(model(ids).logits, plain)


@torch.no_grad()
def test_the_edit_is_that_of_the_reference(llama):
    edit, ids = plan(), prompts()
    before = hidden_states(llama, ids)[2].double()
    with ss.steer(llama, {1: edit}, strength=0.7):
        after = hidden_states(llama, ids)[2].double()
    p = edit.to(dtype=torch.float64)
    flat = before.view(-1, WIDTH)
    expected = ss.reference.steer(
        flat,
        flat,
        None,
        p.encoder,
        p.decoder,
        p.rows,
        p.delta_bias,
        None,
        0.7,
        p.input_norm,
        p.scale_rule,
        p.gap,
        False,
    ).view_as(before)
    assert ((after - expected).norm() / (expected - before).norm()) < 1e-5


@torch.no_grad()
def test_layers_before_the_site_are_untouched(family):
    model, ids = build(family), prompts()
    before = hidden_states(model, ids)
    with ss.steer(model, {1: plan()}):
        after = hidden_states(model, ids)
    for layer in range(N_LAYERS):
        assert torch.equal(before[layer], after[layer]) == (layer < 2), layer


@torch.no_grad()
def test_several_layers_and_several_plans_at_one_site(llama):
    first, second, third, ids = plan(seed=1), plan(seed=2), plan(seed=3), prompts()
    with (
        steered_by_hand(llama.model.layers[0], lambda h: ss.ops.steer(ss.ops.steer(h, first), second)),
        steered_by_hand(llama.model.layers[2], lambda h: ss.ops.steer(h, third)),
    ):
        expected = llama(ids).logits
    with ss.steer(llama, {0: [first, second], "model.layers.2": third}):
        assert torch.equal(llama(ids).logits, expected)


@torch.no_grad()
def test_nested_contexts_compose_in_order_of_entry(llama):
    first, second, ids = plan(seed=1), plan(seed=2), prompts()
    with ss.steer(llama, {1: [first, second]}):
        expected = llama(ids).logits
    with ss.steer(llama, {1: [second, first]}):
        assert not torch.allclose(llama(ids).logits, expected)
    with ss.steer(llama, {1: first}):
        with ss.steer(llama, {1: second}, positions="prompt"):
            assert torch.equal(llama(ids).logits, expected)
        alone = llama(ids).logits
    with ss.steer(llama, {1: first}):
        assert torch.equal(llama(ids).logits, alone)


@torch.no_grad()
def test_hooks_of_others_see_the_steered_states_whenever_they_came(llama):
    edit, ids = plan(), prompts()
    seen = []
    plain = hidden_states(llama, ids)[2]
    handle = llama.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with ss.steer(llama, {1: edit}):
        llama(ids)
    handle.remove()
    assert torch.equal(seen[0], ss.ops.steer(plain, edit))


@torch.no_grad()
def test_entered_again_after_leaving_and_no_trace_stays(llama):
    ids = prompts()
    plain = llama(ids).logits
    attributes = {name: set(vars(module)) for name, module in llama.named_modules()}
    steering = ss.steer(llama, {0: plan(), 2: plan(seed=2)}, positions="last_prompt")
    with steering:
        first = llama(ids).logits
    assert torch.equal(llama(ids).logits, plain)
    with steering as same:
        assert same is steering
        assert torch.equal(llama(ids).logits, first)
    assert torch.equal(llama(ids).logits, plain)
    assert hook_count(llama) == 0
    assert {name: set(vars(module)) for name, module in llama.named_modules()} == attributes


@torch.no_grad()
def test_removed_when_the_body_or_the_model_raises(llama):
    ids = prompts()
    plain = llama(ids).logits
    with pytest.raises(KeyError), ss.steer(llama, {1: plan()}):
        raise KeyError
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"), ss.steer(llama, {1: plan()}):
        llama()
    assert hook_count(llama) == 0
    assert torch.equal(llama(ids).logits, plain)


def test_entering_twice_at_once_raises_and_the_first_stays(llama):
    steering = ss.steer(llama, {1: plan()})
    with steering:
        with pytest.raises(RuntimeError, match="entered already"):
            steering.__enter__()
        assert hook_count(llama) > 0
    assert hook_count(llama) == 0


def test_gradients_flow_through_and_agree_with_a_hook_by_hand(llama):
    edit, ids = plan(), prompts()
    with steered_by_hand(llama.model.layers[1], lambda h: ss.ops.steer(h, edit)):
        llama(ids, labels=ids).loss.backward()
    expected = llama.model.embed_tokens.weight.grad.clone()
    llama.zero_grad()
    with ss.steer(llama, {1: edit}):
        llama(ids, labels=ids).loss.backward()
    gradient = llama.model.embed_tokens.weight.grad
    assert gradient.norm() > 0
    assert torch.equal(gradient, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_of_the_model(llama, dtype):
    model, ids = llama.to(dtype), prompts()
    plain = hidden_states(model, ids)[2]
    with ss.steer(model, {1: plan()}):
        steered = hidden_states(model, ids)[2]
    assert steered.dtype == dtype
    assert torch.equal(steered, ss.ops.steer(plain, plan()))
    assert not torch.equal(steered, plain)


@torch.no_grad()
def test_a_plain_torch_model(llama):
    edit, h = plan(), torch.randn(2, 5, WIDTH)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    with ss.steer(model, {"0": edit}, positions="last_prompt"):
        steered = model(h)
    expected = model[0](h)
    expected[:, -1] = ss.ops.steer(expected[:, -1], edit)
    torch.testing.assert_close(steered, model[1](expected))


@torch.no_grad()
def test_threads_follow_their_own_sequences(llama):
    inputs = [prompts(n_rows=n, n_tokens=4 + n, seed=n) for n in (1, 2, 3)]
    with ss.steer(llama, {1: plan()}, positions="last_prompt"):
        expected = [llama(ids).logits for ids in inputs]
        got = [[] for _ in inputs]

        def run(ids, results):
            for _ in range(20):
                with torch.no_grad():
                    results.append(llama(ids).logits)

        threads = [threading.Thread(target=run, args=pair) for pair in zip(inputs, got, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for results, logits in zip(got, expected, strict=True):
        assert len(results) == 20
        for each in results:
            torch.testing.assert_close(each, logits)


@torch.no_grad()
def test_strength_zero_and_strength_set_inside(llama):
    ids = prompts()
    plain = llama(ids).logits
    with ss.steer(llama, {1: plan()}, strength=2.5):
        strong = llama(ids).logits
    with ss.steer(llama, {1: plan()}, strength=0.0) as steering:
        assert torch.equal(llama(ids).logits, plain)
        steering.strength = 2.5
        assert torch.equal(llama(ids).logits, strong)
        with pytest.raises(ValueError, match="finite, got nan"):
            steering.strength = float("nan")


def test_topk_and_reconstruct_plans(llama):
    generator = torch.Generator().manual_seed(3)
    weights = {
        "W_enc": torch.randn(WIDTH, 40, generator=generator), "W_dec": torch.randn(40, WIDTH, generator=generator),
    }  # fmt: skip
    ids = prompts()
    with torch.no_grad():
        plain = hidden_states(llama, ids)[2]
        for activation, reconstruct in ((ss.TopK(4), False), (ss.ReLU(), True)):
            edit = ss.SAE(**weights, activation=activation).plan(ss.Edit.set({5: 4.0}), reconstruct=reconstruct)
            with ss.steer(llama, {1: edit}):
                assert torch.equal(hidden_states(llama, ids)[2], ss.ops.steer(plain, edit))
