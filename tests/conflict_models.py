"""A tiny Llama that reads characters, and conflicts of which it answers some from the context and some from memory."""

import string

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sparsesteer as ss

WIDTH, N_FEATURES = 32, 96
_CHARACTERS = ["<pad>", "<bos>", "<eos>", "<unk>", *string.ascii_letters, *string.digits, *" .:\n"]


def tokenizer():
    """One token a character, behind a token that begins the text."""
    backend = Tokenizer(kinds.WordLevel({c: i for i, c in enumerate(_CHARACTERS)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


def model():
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(_CHARACTERS), max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    found = LlamaForCausalLM(config).eval()
    for parameter in found.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return found


def gemma():
    """Another family: it caps its logits, and looks back through a window in every second block."""
    config = Gemma2Config(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, query_pre_attn_scalar=8, sliding_window=32, final_logit_softcapping=5.0, tie_word_embeddings=False,
        vocab_size=len(_CHARACTERS), max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    found = Gemma2ForCausalLM(config).eval()
    for parameter in found.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return found


def sae(seed=0, activation=None, site=None):
    generator = torch.Generator().manual_seed(seed)
    return ss.SAE(
        W_enc=torch.randn(WIDTH, N_FEATURES, generator=generator) / 4,
        W_dec=torch.randn(N_FEATURES, WIDTH, generator=generator),
        b_enc=torch.randn(N_FEATURES, generator=generator) - 0.5,
        activation=activation or ss.TopK(5),
        site=ss.Site(hook_name=site),
    )


def answer_of(model, tokenizer, prompt, max_new_tokens=4):
    """The first line of what a model writes, prompt by prompt."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        new = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).split("\n")[0].strip()


def conflicts(model, tokenizer, n=20):
    """Examples with what the model answers as sub_answer, org_answer or neither, by their number in threes."""
    found = []
    for i in range(n):
        example = {"question": f"who is {i % 7} of {'abcdefg'[i % 5]}", "sub_context": f"it was {i}" + i % 4 * " so"}
        prompt = f"context: {example['sub_context']}\nquestion: {example['question']}\nanswer:"
        answer = answer_of(model, tokenizer, prompt)
        names = {0: ("sub_answer", "org_answer"), 1: ("org_answer", "sub_answer")}.get(i % 3)
        example |= {"sub_answer": "not given", "org_answer": ["nor this"], "org_context": f"it was not {i}"}
        if names and any(c.isalnum() for c in answer):
            example |= {names[0]: ["other", f"The {answer.upper()}."]}
        found.append(example)
    return found
