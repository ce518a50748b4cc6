"""A tiny model with random weights of every family whose hook points are known; nothing is downloaded."""

import torch
import transformers

WIDTH, N_LAYERS, VOCABULARY, N_HEADS = 32, 2, 61, 4
WINDOW = 4

_BASE = dict(
    hidden_size=WIDTH, num_hidden_layers=N_LAYERS, num_attention_heads=N_HEADS, vocab_size=VOCABULARY,
    pad_token_id=0, bos_token_id=1, eos_token_id=VOCABULARY - 1,
)  # fmt: skip
_WITH_MLP = _BASE | dict(intermediate_size=48, max_position_embeddings=64)
_GROUPED = _WITH_MLP | dict(num_key_value_heads=2)
_WIDE_HEADS = _GROUPED | dict(head_dim=16)
_EXPERTS = _GROUPED | dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24
)
_GEMMA = _WIDE_HEADS | dict(sliding_window=WINDOW, query_pre_attn_scalar=16)
_GPT2 = dict(
    n_embd=WIDTH, n_layer=N_LAYERS, n_head=N_HEADS, vocab_size=VOCABULARY, n_positions=64, pad_token_id=0,
    bos_token_id=1, eos_token_id=VOCABULARY - 1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip

# name -> (config class, its arguments)
CONFIGS = {
    "llama": (transformers.LlamaConfig, _GROUPED),
    "mistral": (transformers.MistralConfig, _GROUPED | dict(sliding_window=WINDOW)),
    "qwen2": (transformers.Qwen2Config, _GROUPED),
    "qwen3": (transformers.Qwen3Config, _WIDE_HEADS),
    "smollm3": (transformers.SmolLM3Config, _GROUPED),
    "gemma": (transformers.GemmaConfig, _WIDE_HEADS),
    "gemma2": (transformers.Gemma2Config, _GEMMA),
    "gemma3": (transformers.Gemma3TextConfig, _GEMMA),
    "phi": (transformers.PhiConfig, _WITH_MLP),
    "phi3": (transformers.Phi3Config, _GROUPED),
    "gpt2": (transformers.GPT2Config, _GPT2),
    "gpt_neo": (
        transformers.GPTNeoConfig,
        _BASE | dict(intermediate_size=48, max_position_embeddings=64, attention_types=[[["global", "local"], 1]],
                     window_size=WINDOW),
    ),
    "gpt_neox": (transformers.GPTNeoXConfig, _WITH_MLP),
    "gpt_neox_sequential": (transformers.GPTNeoXConfig, _WITH_MLP | dict(use_parallel_residual=False)),
    "olmo": (transformers.OlmoConfig, _GROUPED),
    "olmo2": (transformers.Olmo2Config, _GROUPED),
    "olmo3": (transformers.Olmo3Config, _GROUPED | dict(sliding_window=WINDOW)),
    "falcon": (transformers.FalconConfig, _BASE),
    "falcon_two_norms": (transformers.FalconConfig, _BASE | dict(new_decoder_architecture=True, num_kv_heads=1)),
    "falcon_sequential": (
        transformers.FalconConfig,
        _BASE | dict(parallel_attn=False, alibi=True, multi_query=False),
    ),
    "mixtral": (transformers.MixtralConfig, _GROUPED | dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2_moe": (transformers.Qwen2MoeConfig, _EXPERTS),
    "qwen3_moe": (transformers.Qwen3MoeConfig, _EXPERTS | dict(head_dim=16)),
    "olmoe": (transformers.OlmoeConfig, _GROUPED | dict(num_experts=4, num_experts_per_tok=2)),
    "gpt_oss": (
        transformers.GptOssConfig,
        _WIDE_HEADS | dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW),
    ),
}  # fmt: skip


def build(name, n_layers=N_LAYERS):
    """The model of a family, the same weights each time."""
    config_class, arguments = CONFIGS[name]
    depth = "n_layer" if "n_layer" in arguments else "num_hidden_layers"
    config = config_class(**arguments | {depth: n_layers})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # with the usual 0.02 every token gets the same logits
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)  # norms that differ from none
    return model
