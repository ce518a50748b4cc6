"""Plans that read at one place and write at another: transcoders, against hooks written by hand."""

import threading
from dataclasses import replace

import families
import models
import pytest
import torch
from families import WIDTH, build
from models import prompts
from torch._dynamo.testing import CompileCounter
from transformers import DynamicCache

import sparsesteer as ss
from sparsesteer.model.sites import ModelSites
from sparsesteer.reference import activate, edit_deltas

pytestmark = pytest.mark.usefixtures("one_thread")

MLP = ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out")
LAYER = "model.layers.0"
ACROSS = ("blocks.0.hook_mlp_in", "blocks.1.hook_mlp_out")


def transcoder(width=WIDTH, width_out=WIDTH, seed=1, places=MLP):
    """A plan of two widths for two places."""
    reads, writes = models.plan(width=width, seed=seed), models.plan(width=width_out, seed=seed)
    site = ss.Site(hook_name=places[0], hook_name_out=places[1])
    return replace(reads, decoder=writes.decoder, delta_bias=writes.delta_bias, site=site)


class ByHand:
    """The same edit with two hooks; ``chosen`` is a strength for each token of a call."""

    def __init__(self, model, plan, chosen=lambda w: 1.0):
        sites, self.x = ModelSites.of(model), None
        read, written = sites.read_and_written(plan.site)
        self.detach = [
            read.attach(self.keep),
            written.attach(lambda w: ss.ops.steer(self.x, plan, chosen(w), into=w)),
        ]

    def keep(self, x):
        self.x = x.clone()
        return x

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for detach in self.detach:
            detach()


@pytest.fixture
def llama():
    return build("llama")


@torch.no_grad()
@pytest.mark.parametrize("name", families.CONFIGS)
def test_an_mlp_transcoder_in_every_family(name):
    model, ids, plan = build(name), prompts(), transcoder()
    plain = model(ids).logits
    with ByHand(model, plan):
        expected = model(ids).logits
    with ss.steer(model, plan):
        assert torch.equal(model(ids).logits, expected)
    assert (expected - plain).abs().max() > 0.1
    assert torch.equal(model(ids).logits, plain)


@torch.no_grad()
def test_with_hooks_of_plain_torch(llama):
    """mlp(x) + sum_j d_j(x) W_dec_j, spelled out on the modules themselves."""
    ids, plan, mlp = prompts(), transcoder(), llama.model.layers[0].mlp
    plain = llama(ids).logits

    def edited(module, args, output):
        f = activate(args[0] @ plan.encoder.T + plan.rows[:, 0], plan.rows)
        return output + edit_deltas(f, plan.rows) @ plan.decoder + plan.delta_bias

    handle = mlp.register_forward_hook(edited)
    expected = llama(ids).logits
    handle.remove()
    with ss.steer(llama, plan):
        assert (llama(ids).logits - expected).norm() < 1e-5 * (expected - plain).norm()


@torch.no_grad()
@pytest.mark.parametrize(
    ("places", "widths"),
    [
        (("blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"), (WIDTH, WIDTH)),
        (("blocks.0.attn.hook_z", "blocks.0.hook_attn_out"), (64, WIDTH)),
        (("blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post"), (WIDTH, 48)),
        (ACROSS, (WIDTH, WIDTH)),
        ((f"{LAYER}.mlp.input", f"{LAYER}.mlp.output"), (WIDTH, WIDTH)),
        ((f"{LAYER}.pre_feedforward_layernorm.output", f"{LAYER}.post_feedforward_layernorm"), (WIDTH, WIDTH)),
    ],
    ids=lambda value: str(value[0]),
)  # fmt: skip
def test_other_pairs_of_places(places, widths):
    model, ids, plan = build("gemma2"), prompts(), transcoder(*widths, places=places)
    with ByHand(model, plan):
        expected = model(ids).logits
    with ss.steer(model, plan):
        assert torch.equal(model(ids).logits, expected)
    assert not torch.equal(expected, model(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_positions_in_padded_generation(llama, use_cache):
    llama.generation_config.eos_token_id = None
    ids, plan = prompts(2, 6), transcoder()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0

    def generated_only(w):
        strength = torch.zeros(w.shape[:2])
        strength[:, 6:] = 1
        return strength if w.shape[1] > 1 else 1.0

    options = dict(attention_mask=mask, max_new_tokens=5, do_sample=False, use_cache=use_cache)
    with ByHand(llama, plan, generated_only):
        expected = llama.generate(ids, **options)
    with ss.steer(llama, plan, positions="generated"):
        assert torch.equal(llama.generate(ids, **options), expected)
    assert not torch.equal(expected, llama.generate(ids, **options))


@torch.no_grad()
def test_several_and_a_plan_at_the_same_place(llama):
    """What a transcoder reads is what the contexts entered before it have made of its place."""
    ids, first, second = prompts(), transcoder(seed=1), transcoder(seed=2, places=ACROSS)
    at_input = models.plan(seed=3)
    with ss.steer(llama, {MLP[0]: at_input}), ss.steer(llama, {first.site: first, second.site: second}):
        inside = llama(ids).logits
    sites = ModelSites.of(llama)
    detach = sites.resolve(MLP[0]).attach(lambda h: ss.ops.steer(h, at_input))
    with ByHand(llama, first), ByHand(llama, second):
        expected = llama(ids).logits
    detach()
    assert torch.equal(inside, expected)
    with ss.steer(llama, [first, second][0]), ss.steer(llama, {MLP[0]: at_input}):
        assert not torch.equal(llama(ids).logits, expected)


@torch.no_grad()
def test_strength_zero_keeps_every_bit(llama):
    ids = prompts()
    plain = llama(ids).logits
    with ss.steer(llama, transcoder(), strength=0.0):
        assert torch.equal(llama(ids).logits, plain)
    with ss.steer(llama, transcoder(), strength=torch.zeros(2)):
        assert torch.equal(llama(ids).logits, plain)


@torch.no_grad()
def test_a_topk_transcoder(llama):
    generator = torch.Generator().manual_seed(3)
    sae = ss.SAE(
        W_enc=torch.randn(WIDTH, 40, generator=generator), W_dec=torch.randn(40, WIDTH, generator=generator),
        activation=ss.TopK(4), site=ss.Site(hook_name=MLP[0], hook_name_out=MLP[1]),
    )  # fmt: skip
    ids, plan = prompts(), sae.plan(ss.Edit.scale({j: 3.0 for j in range(40)}))
    with ByHand(llama, plan):
        expected = llama(ids).logits
    with ss.steer(llama, plan):
        assert torch.equal(llama(ids).logits, expected)
    assert not torch.equal(expected, llama(ids).logits)


@torch.no_grad()
def test_threads_read_and_write_their_own(llama):
    inputs = [prompts(n, 3 + n, seed=n) for n in (1, 2, 3)]
    plan = transcoder(places=ACROSS)
    got = [[] for _ in inputs]

    def run(ids, results):
        with torch.no_grad():
            results.extend(llama(ids).logits for _ in range(20))

    with ss.steer(llama, plan):
        expected = [llama(ids).logits for ids in inputs]
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
@pytest.mark.parametrize("raises", [True, False])
def test_a_call_inside_of_a_call_keeps_to_itself(llama, raises):
    """A hook between the two places runs the model on other tokens, of which one call breaks off."""
    ids, other, plan = prompts(), prompts(1, 3, seed=9), transcoder(places=ACROSS)
    with ss.steer(llama, plan, positions="last_prompt"):
        expected, expected_other = llama(ids).logits, llama(other).logits
        seen = []

        def run_inside(module, args, output):
            if len(seen) == 0:
                seen.append(None)
                seen[0] = llama(other).logits
                if raises:
                    with pytest.raises(IndexError):
                        llama(other + families.VOCABULARY)

        handle = llama.model.layers[0].register_forward_hook(run_inside)
        assert torch.equal(llama(ids).logits, expected)
        handle.remove()
    assert torch.equal(seen[0], expected_other)


@torch.no_grad()
def test_nothing_read_is_left_for_a_later_call(llama):
    ids, plan = prompts(), transcoder(places=ACROSS)
    with ss.steer(llama, plan):
        handle = llama.model.layers[1].register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llama(ids)
        handle.remove()
        with pytest.raises(RuntimeError, match="model.layers.1.mlp ran outside the model whose calls show its tokens"):
            llama.model.layers[1].mlp(torch.randn(1, 2, WIDTH))


def test_gradients_agree_with_hooks_by_hand(llama):
    ids, plan = prompts(), transcoder(places=ACROSS)
    with ByHand(llama, plan):
        llama(ids, labels=ids).loss.backward()
    expected = llama.model.embed_tokens.weight.grad.clone()
    llama.zero_grad()
    with ss.steer(llama, plan):
        llama(ids, labels=ids).loss.backward()
    assert expected.norm() > 0
    assert torch.equal(llama.model.embed_tokens.weight.grad, expected)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["all", "last_prompt"])
def test_one_graph_and_few_compilations_while_the_sequence_grows(positions):
    torch.compiler.reset()
    model, counter = models.Toy(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    plan = transcoder(places=("blocks.0.input", "blocks.1"))
    plain = model(prompts(n_tokens=17))
    with ss.steer(compiled, plan, positions=positions):
        for n_tokens in (4, 5, 6, 9, 12, 17):
            ids = prompts(n_tokens=n_tokens)
            torch.testing.assert_close(compiled(ids), model(ids), atol=1e-5, rtol=1e-5)
        assert (compiled(ids) - plain).abs().max() > 0.1
    assert counter.frame_count <= 3
    torch.compiler.reset()


@torch.no_grad()
@pytest.mark.slow
def test_code_of_inductor_has_the_bits_of_hooks_by_hand(llama):
    ids = prompts()
    plans = [transcoder(seed=1), transcoder(seed=2, places=ACROSS)]

    def run():
        torch.compiler.reset()
        compiled, cache = torch.compile(llama), DynamicCache()
        whole = compiled(ids).logits
        parts = [compiled(part, past_key_values=cache).logits for part in (ids[:, :-1], ids[:, -1:])]
        return torch.cat([whole, *parts], dim=1)

    with ByHand(llama, plans[0]), ByHand(llama, plans[1]):
        expected = run()
    with ss.steer(llama, {plan.site: plan for plan in plans}):
        assert torch.equal(run(), expected)
    torch.compiler.reset()
