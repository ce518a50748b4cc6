"""Positions with every kind of cache, and where candidates of several tokens are checked at once, against the loop by
hand of ``test_hooks_positions``."""

import families
import models
import pytest
import torch
import transformers
from test_hooks_positions import (
    CASES,
    IN_CHUNKS,
    N_NEW,
    SITE,
    assert_as_by_hand,
    endless,
    generate,
    generate_by_hand,
    padded,
    rows,
)
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")

SOME_CASES = ("generated", "last_prompt", "slice_open", "slice_from_end", "slice_closed", "slice_past_prompt")
RECURRENT = dict(
    hidden_size=models.WIDTH, num_hidden_layers=2, vocab_size=models.VOCABULARY, pad_token_id=models.PAD,
    bos_token_id=1, eos_token_id=models.VOCABULARY - 1,
)  # fmt: skip


@pytest.fixture(scope="module", params=["mistral", "gemma2", "gemma3"])
def sliding(request):
    """All layers with a window shorter than the prompts, and every second one."""
    return endless(families.build(request.param))


@pytest.fixture(scope="module", params=["mamba", "mamba2", "lfm2"])
def recurrent(request):
    """Layers whose state does not tell how many tokens it is of, alone and mixed with attention."""
    config = {
        "mamba": lambda: transformers.MambaConfig(**RECURRENT, state_size=8, intermediate_size=64, time_step_rank=4),
        "mamba2": lambda: transformers.Mamba2Config(
            **RECURRENT, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=4
        ),
        "lfm2": lambda: transformers.Lfm2Config(
            **RECURRENT, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        ),
    }[request.param]()  # fmt: skip
    return of_config(config)


def of_config(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return endless(model)


@pytest.fixture(scope="module")
def llama():
    return endless(models.llama())


@pytest.mark.parametrize("case", SOME_CASES)
@pytest.mark.parametrize(
    "options",
    [{}, {"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}],
    ids=["dynamic", "static", "none"],
)
def test_sliding_windows(sliding, case, options):
    positions, rule = CASES[case]
    assert_as_by_hand(sliding, generate(sliding, *padded("left"), positions, **options), rule)


@pytest.mark.parametrize("case", [case for case in SOME_CASES if case in IN_CHUNKS])
def test_sliding_windows_in_chunks(sliding, case):
    positions, rule = CASES[case]
    assert_as_by_hand(sliding, generate(sliding, *padded("left"), positions, prefill_chunk_size=3), rule)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("case", SOME_CASES)
def test_recurrent_layers(recurrent, case, use_cache):
    positions, rule = CASES[case]
    assert_as_by_hand(recurrent, generate(recurrent, *padded("left"), positions, use_cache=use_cache), rule)


@torch.no_grad()
def test_a_recurrent_state_from_before(recurrent):
    """How many tokens it is of cannot be told; a cache with attention layers tells."""
    ids, cache = rows()[1], DynamicCache(config=recurrent.config)
    name = "past_key_values" if recurrent.config.model_type == "lfm2" else "cache_params"
    recurrent(ids, **{name: cache}, use_cache=True)
    with ss.steer(recurrent, {SITE: models.plan()}, positions="generated"):
        if name == "past_key_values":
            recurrent(ids[:, -1:], **{name: cache})
        else:
            with pytest.raises(
                TypeError, match="DynamicCache holds a recurrent state, .* from the sequence's first call"
            ):
                recurrent(ids[:, -1:], **{name: cache}, use_cache=True)


@torch.no_grad()
def test_a_state_that_is_no_cache_is_refused():
    config = transformers.RwkvConfig(**RECURRENT, attention_hidden_size=32, intermediate_size=48, context_length=64)
    model, prompt = of_config(config), rows()[1]
    positions, rule = CASES["slice_open"]
    plan = {"rwkv.blocks.1": models.plan()}
    with ss.steer(model, plan, positions=positions):
        without = model.generate(prompt, max_new_tokens=N_NEW, do_sample=False, use_cache=False)
        with pytest.raises(TypeError, match="brings 1 tokens that go on from a state.*use_cache=False"):
            model.generate(prompt, max_new_tokens=N_NEW, do_sample=False)
    assert without.shape[1] == prompt.shape[1] + N_NEW


@torch.no_grad()
def test_a_cache_that_does_not_tell_its_length(llama):
    with (
        pytest.raises(TypeError, match="cannot read how many tokens a tuple holds; .*use_cache=False"),
        ss.steer(llama, {SITE: models.plan()}),
    ):
        llama(rows()[0], past_key_values=((torch.zeros(1), torch.zeros(1)),))


# Assisted generation checks several candidates in one call, the first ones together with the prompt.


class FollowsThePrompt(LogitsProcessor):
    """Makes the model repeat the prompt's tokens, which a lookup in the prompt then guesses."""

    def __init__(self, prompt):
        self.prompt = prompt[0]

    def __call__(self, ids, scores):
        wanted = self.prompt[ids.shape[1] % len(self.prompt)]
        return torch.full_like(scores, -1e9).index_fill(1, wanted, 0.0)


def assisted_logits(model, prompt, positions, **options):
    with ss.steer(model, {SITE: models.plan()}, positions=positions):
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=N_NEW, do_sample=False,
            return_dict_in_generate=True, output_logits=True, **options,
        )  # fmt: skip
    return out.sequences[:, prompt.shape[1] :], torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("kind", ["assistant", "the_model_itself", "early_exit", "prompt_lookup"])
@pytest.mark.parametrize("case", CASES)
def test_assisted_generation(llama, kind, case):
    positions, rule = CASES[case]
    prompt = torch.cat([rows()[1], rows()[1]], dim=1)
    draft = endless(models.llama(n_layers=1))
    draft.generation_config.num_assistant_tokens = 4
    draft.generation_config.assistant_confidence_threshold = 0.0
    options = {
        "assistant": dict(assistant_model=draft),
        "the_model_itself": dict(assistant_model=llama),
        "early_exit": dict(assistant_early_exit=2),
        "prompt_lookup": dict(prompt_lookup_num_tokens=3),
    }[kind]
    widths = []
    handle = llama.model.layers[SITE].register_forward_hook(lambda module, args, h: widths.append(h.shape[1]))
    tokens, logits = assisted_logits(llama, prompt, positions, **options)
    handle.remove()
    by_hand, expected = generate_by_hand(llama, prompt, lambda p, n, token: rule(p, n))
    torch.testing.assert_close(logits[0], expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(tokens[0], by_hand)
    assert max(widths) > prompt.shape[1] or max(widths[1:]) > 1, "no candidates were checked"


@pytest.mark.parametrize("positions", ["generated", "last_prompt", slice(2, -1)], ids=str)
def test_accepted_candidates(llama, positions):
    """Several tokens of a call stay in the cache, and the next call begins behind them."""
    prompt = torch.cat([rows()[1]] * 3, dim=1)
    processors = LogitsProcessorList([FollowsThePrompt(prompt)])
    plain, expected = assisted_logits(llama, prompt, positions, logits_processor=processors)
    calls = []
    handle = llama.model.layers[SITE].register_forward_hook(lambda module, args, h: calls.append(h.shape[1]))
    tokens, logits = assisted_logits(llama, prompt, positions, logits_processor=processors, prompt_lookup_num_tokens=2)
    handle.remove()
    assert len(calls) < N_NEW - 1
    assert torch.equal(tokens, plain)
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_strength_for_each_token_of_the_prompt_in_assisted_generation(llama):
    prompt = torch.cat([rows()[1]] * 3, dim=1)
    strength = torch.linspace(0, 1.5, prompt.shape[1])[None]
    options = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=N_NEW, do_sample=False)
    with ss.steer(llama, {SITE: models.plan()}, strength=strength):
        expected = llama.generate(prompt, **options)
        assert torch.equal(llama.generate(prompt, **options, prompt_lookup_num_tokens=3), expected)
    assert not torch.equal(llama.generate(prompt, **options), expected)


@torch.no_grad()
def test_assisted_generation_that_does_not_mark_candidates_is_refused():
    config = transformers.T5Config(
        d_model=models.WIDTH, d_ff=48, num_layers=1, num_heads=4, d_kv=8, vocab_size=models.VOCABULARY,
        decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model, site = endless(transformers.T5ForConditionalGeneration(config).eval()), {"decoder.block.0": models.plan()}
    options = dict(max_new_tokens=6, do_sample=False)
    with ss.steer(model, site):
        expected = model.generate(rows()[1], **options)
        assert torch.equal(model.generate(rows()[1], **options, prompt_lookup_num_tokens=2), expected)
    with ss.steer(model, site, positions="generated"):
        model.generate(rows()[1], **options)
        with pytest.raises(ValueError, match="which of them are candidates, so use positions='all'"):
            model.generate(rows()[1], **options, prompt_lookup_num_tokens=2)


@torch.no_grad()
def test_logits_kept_of_a_prompt_are_no_candidates(llama):
    """Scoring code asks for the last logits of a prompt, without a cache."""
    ids = rows()[1]
    with ss.steer(llama, {SITE: models.plan()}, positions="prompt"):
        expected = llama(ids).logits[:, -3:]
        torch.testing.assert_close(llama(ids, logits_to_keep=3).logits, expected)
