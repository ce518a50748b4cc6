"""Tiny language models with random weights, and plans for them; nothing is downloaded."""

import contextlib
from types import SimpleNamespace

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import sparsesteer as ss

WIDTH, N_LAYERS, VOCABULARY, N_FEATURES = 32, 3, 61, 48
PAD = 0
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "neox": "gpt_neox.layers"}


def llama(n_layers=N_LAYERS):
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=n_layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=PAD,
    )  # fmt: skip
    return _wide_awake(LlamaForCausalLM, config)


def gpt2():
    config = GPT2Config(
        n_embd=WIDTH, n_layer=N_LAYERS, n_head=4, vocab_size=VOCABULARY, n_positions=64, pad_token_id=PAD,
        bos_token_id=1, eos_token_id=VOCABULARY - 1,
    )  # fmt: skip
    return _wide_awake(GPT2LMHeadModel, config)


def neox():
    config = GPTNeoXConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=N_LAYERS, num_attention_heads=4,
        vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=1,
        eos_token_id=VOCABULARY - 1,
    )  # fmt: skip
    return _wide_awake(GPTNeoXForCausalLM, config)


class Toy(torch.nn.Module):
    """A stack of linear blocks in the guise of a language model, quick to compile."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=2, hidden_size=WIDTH)
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)])

    def forward(self, input_ids, attention_mask=None):
        h = self.embedding(input_ids)
        for each in self.blocks:
            h = torch.tanh(each(h))
        return h


def build(family):
    return {"llama": llama, "gpt2": gpt2, "neox": neox}[family]()


def block(model, family, index):
    return model.get_submodule(f"{BLOCKS[family]}.{index}")


def plan(width=WIDTH, site=None, seed=1, **edits):
    """A plan that changes every token; the strong constant part makes its effect visible in greedy tokens."""
    generator = torch.Generator().manual_seed(seed)
    sae = ss.SAE(
        W_enc=torch.randn(width, N_FEATURES, generator=generator),
        W_dec=torch.randn(N_FEATURES, width, generator=generator),
        b_enc=torch.randn(N_FEATURES, generator=generator) * 0.1,
        activation=ss.ReLU(),
        site=ss.Site(hook_name=site),
    )
    return sae.plan(ss.Edit.set({3: 2.0, 7: 1.0}) | ss.Edit.scale({11: 3.0}) | ss.Edit.add({20 + seed: 1.5}))


def prompts(n_rows=2, n_tokens=6, seed=5):
    """Token ids [n_rows, n_tokens] without the padding id."""
    return torch.randint(2, VOCABULARY - 1, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def steered_by_hand(module, change):
    """Replace the hidden states that a block returns by change(hidden states)."""

    def hook(module, args, output):
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]), *output[1:])

    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


def hidden_states(model, ids, **inputs):
    return model(input_ids=ids, output_hidden_states=True, **inputs).hidden_states


def _wide_awake(cls, config):
    """Weights ten times the usual: with the usual 0.02 every token gets the same logits, and tests see nothing."""
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = cls(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model
