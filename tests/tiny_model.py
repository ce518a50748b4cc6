"""A tiny random Llama with a word-level chat tokenizer, and a random SAE in SAELens's format, in folders."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDTH, N_FEATURES, N_BLOCKS = 16, 48, 3
WORDS = ["one", "bird", "sings", "over", "cold", "river", "while", "seven", "ships", "wait", "there", "under", "stars"]
_TEMPLATE = (
    "{% for m in messages %}<|start|> {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|start|> {% endif %}"
)


def write_model(folder: Path, chat: bool = True) -> None:
    """A Llama of 3 blocks; every word is a token that begins with the mark of a word's start."""
    vocabulary = ["<|start|>", "<|end|>", "<unk>", *(f"▁{word}" for word in WORDS)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", unk_token="<unk>", pad_token="<|end|>"
    )
    tokenizer.chat_template = _TEMPLATE if chat else None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_sae(folder: Path, statistics: bool = True, metadata: dict | None = None) -> dict[str, torch.Tensor]:
    """A random JumpReLU SAE for the residual after block 1; returns its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    weights = {
        "W_enc": torch.randn(WIDTH, N_FEATURES, generator=generator) / 4,
        "W_dec": torch.randn(N_FEATURES, WIDTH, generator=generator),
        "b_enc": torch.randn(N_FEATURES, generator=generator) / 4,
        "b_dec": torch.randn(WIDTH, generator=generator) / 4,
        "threshold": torch.full((N_FEATURES,), 0.3),
    }
    save_file(weights, folder / "sae_weights.safetensors")
    if statistics:
        density = torch.linspace(0, 0.05, N_FEATURES)
        maximum = torch.linspace(2, 4, N_FEATURES)
        save_file({"maximum": maximum, "density": density}, folder / "feature_statistics.safetensors")
    config = {
        "architecture": "jumprelu",
        "d_in": WIDTH,
        "d_sae": N_FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post", **(metadata or {})},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return weights
