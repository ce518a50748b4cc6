"""Each family of models that can be served: its stream is found, and steering is what it is under the hook."""

import pytest
import torch
import transformers
import vllm_engine
from serving_cases import VOCABULARY, WIDTH, prompts, sae_at

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, register

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]

_SIZES = {
    "hidden_size": WIDTH, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GPT2 = {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 256, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
_QUERY = {"query_pre_attn_scalar": 32, "sliding_window": 256}
FAMILIES = {
    "mistral": ("Mistral", _SIZES),
    "qwen2": ("Qwen2", {name: value for name, value in _SIZES.items() if name != "head_dim"}),
    "qwen3": ("Qwen3", _SIZES),
    "gemma": ("Gemma", _SIZES),
    "gemma2": ("Gemma2", _SIZES | _QUERY),
    "gemma3": ("Gemma3Text", _SIZES | _QUERY),
    "gpt2": ("GPT2", _GPT2),
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def tiny(family):
    name, sizes = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes)
    config._attn_implementation = "eager"
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_steered_as_under_the_hook(family, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path / "model")
    sae = sae_at(1)
    sae.save(tmp_path / "sae")
    edit = ss.Edit.set({i: 3.0 for i in range(12)}) | ss.Edit.scale({i: 3.0 for i in range(20, 40)})
    strength = 20.0 if family in ("gemma2", "gemma3") else 1.0  # their streams are long
    spec, given = ServedSpec(sae.plan(edit), strength=strength), prompts(4, 5, 30)
    files = {"model": str(tmp_path / "model"), "sites": [{"sae": str(tmp_path / "sae"), "features": 64}]}
    with vllm_engine.engine(files, specs={}) as llm:
        register(llm, spec, "edit")
        got = {w: vllm_engine.tokens(vllm_engine.generate(llm, given, [w] * 4, 10)) for w in (None, "edit")}
    for prompt, plain, steered in zip(given, *got.values(), strict=True):
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
                   "attention_mask": torch.ones_like(ids)}  # fmt: skip
        assert model.generate(ids, **options)[0, len(prompt) :].tolist() == plain
        with ss.steer(model, spec.plans, spec.strength):
            assert model.generate(ids, **options)[0, len(prompt) :].tolist() == steered
    assert got[None] != got["edit"]


def test_other_families_are_refused_when_the_engine_starts(tmp_path):
    sizes = {name: value for name, value in _SIZES.items() if name != "head_dim"}
    transformers.OlmoForCausalLM(transformers.OlmoConfig(**sizes)).save_pretrained(tmp_path / "model")
    sae_at(1).save(tmp_path / "sae")
    files = {"model": str(tmp_path / "model"), "sites": [{"sae": str(tmp_path / "sae")}]}
    with pytest.raises(ValueError, match="has 0 lists of blocks that can be steered"):
        with vllm_engine.engine(files, specs={}):
            pass
