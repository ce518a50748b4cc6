"""Bad input to ``ss.steer``: what was expected, what came, the way out."""

from dataclasses import replace

import families
import models
import pytest
import torch
import transformers
from models import WIDTH, plan, prompts
from torch import nn

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama():
    return models.llama()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (3, r"no block 3; it has blocks 0 to 2: .*'model.layers.0' to 'model.layers.2'"),
        (-1, r"no block -1; it has blocks 0 to 2"),
        ("blocks.7.hook_resid_post", "no block 7"),
        ("model.layers.9", r"no place 'model.layers.9'; it has blocks 0 to 2.* close module paths are 'model.layers"),
        (
            "blocks.1.hook_q_input",
            "no place 'blocks.1.hook_q_input'.*inside its blocks it has .*attn.hook_z.*hook_mlp_out",
        ),
        ("model.layers.1.sideways", "no place 'model.layers.1.sideways'"),
        ("transformer.h.1", "LlamaForCausalLM has no place 'transformer.h.1'"),
        ("mlp", "no place 'mlp'"),
    ],
)
def test_a_place_that_the_model_lacks(llama, site, message):
    with pytest.raises(ValueError, match=message):
        ss.steer(llama, {site: plan()})


def test_a_plan_without_a_site(llama):
    with pytest.raises(ValueError, match=r"knows no site; name one: ss.steer\(model, \{15: plan\}\)"):
        ss.steer(llama, plan())


def test_a_transcoder_at_one_place(llama):
    edit = replace(plan(), decoder=torch.randn(3, 20), delta_bias=None)
    with pytest.raises(ValueError, match=r"reads 32 and writes 20 numbers a token, which no one place has; .*ss.Site"):
        ss.steer(llama, {1: edit})


def test_a_transcoder_whose_places_are_in_the_wrong_order(llama):
    site = ss.Site(None, "blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out")
    with (
        pytest.raises(RuntimeError, match="writes at model.layers.1.mlp before its place of reading, model.layers.2"),
        ss.steer(llama, {site: plan()}),
    ):
        llama(prompts())


def test_hook_points_of_a_family_that_is_not_known():
    model = models.Toy()
    model.config.model_type = "toy"
    with pytest.raises(ValueError, match="no place 'blocks.1.hook_mlp_out'.*hook points of toy are not known"):
        ss.steer(model, {"blocks.1.hook_mlp_out": plan()})


@pytest.mark.parametrize("point", ["hook_resid_mid", "hook_mlp_in", "ln2.hook_normalized"])
def test_points_that_parallel_blocks_lack(point):
    model = families.build("phi")
    with pytest.raises(ValueError, match=f"no place 'blocks.1.{point}'.*inside its blocks it has .*mlp.hook_in"):
        ss.steer(model, {f"blocks.1.{point}": plan()})


def test_a_plan_of_another_width(llama):
    with pytest.raises(ValueError, match=f"SAE has width 20, the model has width {WIDTH} at model.layers.1"):
        ss.steer(llama, {1: plan(width=20)})
    with (
        pytest.raises(ValueError, match=r"h should have shape \[..., 20\]"),
        ss.steer(llama, {"model.layers.1.mlp": plan(width=20)}),
    ):
        llama(prompts())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, TypeError, "plan should be a SteeringPlan or {site: plan}, got NoneType"),
        ({}, ValueError, "no plan was given"),
        ({1: []}, ValueError, "no plan was given"),
        ({1: ss.Edit.set({1: 1.0})}, TypeError, "at 1 should be a SteeringPlan or a list of them, got Edit"),
        ({1.5: plan()}, TypeError, "a site is a block's number.*got 1.5"),
        ({True: plan()}, TypeError, "a site is a block's number.*got True"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_plans_that_are_none(llama, value, error, message):
    with pytest.raises(error, match=message):
        ss.steer(llama, value)


def test_a_model_that_is_none():
    with pytest.raises(TypeError, match="should be a torch.nn.Module, got str"):
        ss.steer("gpt2", {1: plan()})


def test_a_model_whose_blocks_cannot_be_told():
    model = nn.ModuleDict({name: nn.ModuleList([nn.Linear(4, 4)] * 2) for name in ("encoder", "decoder")})
    with pytest.raises(ValueError, match="no list of blocks.*name a module's path instead of block 0"):
        ss.steer(model, {0: plan()})


def test_a_model_with_an_encoder_and_a_decoder():
    config = transformers.T5Config(
        d_model=WIDTH, d_ff=48, num_layers=2, num_heads=4, d_kv=8, vocab_size=61, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="no list of blocks.*name a module's path instead of block 0"):
        ss.steer(model, {0: plan()})
    with ss.steer(model, {"decoder.block.0": plan()}, positions="last_prompt"):
        model(input_ids=prompts(2, 5), decoder_input_ids=prompts(2, 3))


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        ("last", ValueError, "positions should be all, prompt, last_prompt, generated, a mask.*got 'last'"),
        (1.5, TypeError, "whole numbers or a slice, got 1.5 in float"),
        ([True, False], TypeError, "got True in list"),
        (torch.ones(3), TypeError, "got tensor"),
        (torch.ones(3, dtype=torch.bool), ValueError, r"a mask should have shape \[B, T\], got \[3\]"),
        (slice(0, 4, 2), ValueError, "a slice has no step here"),
        (slice(0.5, None), TypeError, "a slice is of whole numbers"),
        (None, TypeError, "got None in NoneType"),
    ],
    ids=str,
)
def test_positions_that_are_none(llama, positions, error, message):
    with pytest.raises(error, match=message):
        ss.steer(llama, {1: plan()}, positions=positions)


@pytest.mark.parametrize(
    ("strength", "error", "message"),
    [
        (float("inf"), ValueError, "strength should be finite, got inf"),
        ("2", TypeError, "strength should be a number or a tensor, got '2'"),
        (True, TypeError, "got True"),
        (
            torch.ones(2, dtype=torch.int64),
            ValueError,
            r"floating-point tensor \[B\] or \[B, T\], got torch.int64 \[2\]",
        ),
        (torch.ones(2, 3, 4), ValueError, r"got torch.float32 \[2, 3, 4\]"),
    ],
    ids=str,
)
def test_strengths_that_are_none(llama, strength, error, message):
    with pytest.raises(error, match=message):
        ss.steer(llama, {1: plan()}, strength=strength)


@pytest.mark.parametrize("tokens", ["</s>", 5, [1.0], ["</s>"]], ids=str)
def test_special_tokens_that_are_none(llama, tokens):
    with pytest.raises(TypeError, match="exclude_special_tokens should be token ids or a tokenizer"):
        ss.steer(llama, {1: plan()}, exclude_special_tokens=tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": torch.ones(2, 5, dtype=torch.bool)}, "mask has 5 columns, but this prompt has 6 tokens"),
        ({"positions": torch.ones(3, 6, dtype=torch.bool)}, "mask has 3 rows, but this call has 2"),
        ({"positions": [0, 6]}, "index 6 is outside a prompt of 6 tokens"),
        ({"positions": -7}, "index -7 is outside a prompt of 6 tokens"),
        ({"strength": torch.ones(3)}, "strength has 3 rows, but this call has 2"),
        ({"strength": torch.ones(2, 4)}, "strength has 4 columns, but this prompt has 6 tokens"),
    ],
    ids=str,
)
def test_positions_that_do_not_fit_the_prompt(llama, settings, message):
    with pytest.raises(ValueError, match=message), ss.steer(llama, {1: plan()}, **settings):
        llama(prompts())


def test_special_tokens_of_embeddings(llama):
    embedded = llama.model.embed_tokens(prompts())
    with (
        pytest.raises(ValueError, match="needs a call with input_ids, this one has embeddings"),
        ss.steer(llama, {1: plan()}, exclude_special_tokens=[1]),
    ):
        llama(inputs_embeds=embedded)


def test_a_block_called_outside_its_model(llama):
    with (
        pytest.raises(RuntimeError, match="model.layers.1.mlp ran outside the model whose calls show its tokens"),
        ss.steer(llama, {"model.layers.1.mlp": plan()}),
    ):
        llama.model.layers[1].mlp(torch.randn(1, 2, WIDTH))


def test_a_place_that_returns_no_tensor(llama):
    with (
        pytest.raises(TypeError, match="model returns BaseModelOutputWithPast; what is steered or recorded"),
        ss.steer(llama, {"model": plan()}),
    ):
        llama(prompts())


def test_a_module_called_without_tokens():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self):
            return self.inner(torch.ones(2, 3, WIDTH))

    model = Constant()
    with ss.steer(model, {"inner": plan()}):
        assert torch.equal(model(), ss.ops.steer(torch.ones(2, 3, WIDTH), plan()))
    with (
        pytest.raises(ValueError, match="tokens cannot be told apart; use positions='all'"),
        ss.steer(model, {"inner": plan()}, positions="prompt"),
    ):
        model()
