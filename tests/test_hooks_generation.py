"""Beams, conversations and several prompts in one steering."""

import models
import pytest
import torch
from models import plan, prompts
from test_hooks_positions import N_NEW, SITE, endless, generate, padded
from transformers import DynamicCache

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama():
    return endless(models.llama())


class ByHand:
    """Steers prompts with a table [B, T] and every generated token with one number, told apart by the length."""

    def __init__(self, model, table, generated):
        self.table, self.generated = table, generated
        self.handle = model.model.layers[SITE].register_forward_hook(self)

    def __call__(self, module, args, h):
        if h.shape[1] == 1:
            return ss.ops.steer(h, plan(), float(self.generated))
        table = self.table.repeat_interleave(h.shape[0] // self.table.shape[0], 0)
        return ss.ops.steer(h, plan(), torch.nn.functional.pad(table, (0, h.shape[1] - table.shape[1])))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated", "mask"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beam_search(llama, positions, options):
    ids, mask = padded("left")
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    last = torch.zeros_like(mask)
    last[:, -1] = 1
    table = {"all": mask, "prompt": mask, "last_prompt": last, "generated": 0 * mask, "mask": chosen * mask}[positions]
    options = {"attention_mask": mask, "max_new_tokens": N_NEW, "do_sample": False, **options}
    by_hand = ByHand(llama, table.float(), positions in ("all", "generated"))
    expected = llama.generate(ids, **options)
    by_hand.handle.remove()
    with ss.steer(llama, {SITE: plan()}, positions=chosen if positions == "mask" else positions):
        cached = llama.generate(ids, **options)
        whole = llama.generate(ids, use_cache=False, **options)
    assert torch.equal(cached, expected)
    assert torch.equal(whole, expected)
    assert not torch.equal(expected, llama.generate(ids, **options))


@torch.no_grad()
def test_sampled_sequences_take_their_prompts_row(llama):
    ids, mask = padded("left")
    strength = torch.tensor([0.5, 2.0])
    options = {"attention_mask": mask, "max_new_tokens": N_NEW, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    with ss.steer(llama, {SITE: plan()}, strength=strength):
        together = llama.generate(ids, **options)
    torch.manual_seed(0)
    with ss.steer(llama, {SITE: plan()}, strength=strength.repeat_interleave(3)):
        assert torch.equal(llama.generate(ids, **options), together)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["prompt", "last_prompt", "generated", slice(-2, None), [0]], ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
def test_each_prompt_of_one_steering_starts_anew(llama, positions, use_cache):
    batches = [prompts(2, n, seed=n) for n in (5, 6, 6, 12)]
    options = {"max_new_tokens": N_NEW, "do_sample": False, "use_cache": use_cache}
    alone = [generate(llama, ids, torch.ones_like(ids), positions, use_cache=use_cache)[0] for ids in batches]
    with ss.steer(llama, {SITE: plan()}, positions=positions):
        for ids, expected in zip(batches, alone, strict=True):
            tokens = llama.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :]
            assert torch.equal(tokens, expected)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["prompt", "generated", "last_prompt"])
def test_a_conversation_that_keeps_its_cache(llama, positions):
    """The second turn brings several tokens behind what the cache holds: they are prompt, not generated."""
    first, second = prompts(1, 5, seed=1), prompts(1, 4, seed=2)

    def converse(cache):
        options = {"max_new_tokens": N_NEW, "do_sample": False, "past_key_values": cache}
        turn = llama.generate(first, attention_mask=torch.ones_like(first), **options)
        both = torch.cat([turn, second], dim=1)
        return llama.generate(both, attention_mask=torch.ones_like(both), **options)

    def by_hand(module, args, h):
        table = torch.zeros(h.shape[:2])
        is_prompt = h.shape[1] > 1
        if positions == "last_prompt":
            table[:, -1] = is_prompt
        else:
            table[:] = is_prompt == (positions == "prompt")
        return ss.ops.steer(h, plan(), table)

    handle = llama.model.layers[SITE].register_forward_hook(by_hand)
    expected = converse(DynamicCache())
    handle.remove()
    with ss.steer(llama, {SITE: plan()}, positions=positions):
        assert torch.equal(converse(DynamicCache()), expected)


@torch.no_grad()
def test_a_prompt_prepared_in_a_cache_before(llama):
    """Cached tokens keep their place in the count: index 5 is the second token behind a cache of four."""
    ids = prompts(1, 7)
    cache = DynamicCache()
    llama(ids[:, :4], past_key_values=cache)
    seen = []
    with ss.steer(llama, {SITE: plan()}, positions=[0, 5]):
        handle = llama.model.layers[SITE].register_forward_hook(lambda module, args, h: seen.append(h))
        llama(ids[:, 4:], past_key_values=cache)
        handle.remove()
    handle = llama.model.layers[SITE].register_forward_hook(lambda module, args, h: seen.append(h))
    llama(ids)
    handle.remove()
    steered, plain = seen[0], seen[1][:, 4:]
    close = torch.isclose(steered, plain, atol=1e-4).all(-1)
    assert close.tolist() == [[True, False, True]]


@torch.no_grad()
@pytest.mark.parametrize("positions", ["last_prompt", "generated", slice(-2, None)], ids=str)
def test_embeddings_in_place_of_ids(llama, positions):
    ids = prompts()
    mask = torch.ones_like(ids)
    expected, _ = generate(llama, ids, mask, positions)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "attention_mask": mask}
    with ss.steer(llama, {SITE: plan()}, positions=positions):
        tokens = llama.generate(inputs_embeds=llama.model.embed_tokens(ids), **options)
    assert torch.equal(tokens, expected)
