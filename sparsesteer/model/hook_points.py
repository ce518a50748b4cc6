"""Where the hook points of TransformerLens lie inside the blocks of transformers' models.

A point is "module.side": the output or the input of a module of the block; ``stream``, an input that is the residual
stream itself, with which the block goes on; ``normalized``, what a norm makes of its input before its weight.
``tests/test_lens_names.py`` compares every line with TransformerLens.
"""

from typing import Any

Points = dict[str, str]

_MOE: Points = {
    "ln1.hook_normalized": "input_layernorm.normalized",
    "attn.hook_in": "self_attn.input",
    "attn.hook_z": "self_attn.o_proj.input",
    "attn.hook_out": "self_attn.output",
    "hook_attn_out": "self_attn.output",
    "hook_resid_mid": "post_attention_layernorm.stream",
    "hook_mlp_in": "post_attention_layernorm.input",
    "ln2.hook_normalized": "post_attention_layernorm.normalized",
    "mlp.hook_in": "mlp.input",
    "mlp.hook_out": "mlp.output",
    "hook_mlp_out": "mlp.output",
}
_PRE_NORM = _MOE | {"mlp.hook_post": "mlp.down_proj.input"}
_OLMO = _PRE_NORM | {  # its norms have no weights
    "ln1.hook_normalized": "input_layernorm.output",
    "ln2.hook_normalized": "post_attention_layernorm.output",
}
_NORMS_AROUND = _PRE_NORM | {
    "hook_attn_out": "post_attention_layernorm.output",
    "hook_resid_mid": "pre_feedforward_layernorm.stream",
    "hook_mlp_in": "pre_feedforward_layernorm.input",
    "ln2.hook_normalized": "pre_feedforward_layernorm.normalized",
    "hook_mlp_out": "post_feedforward_layernorm.output",
}
_POST_NORM = _PRE_NORM | {
    "ln1.hook_normalized": "post_attention_layernorm.normalized",
    "hook_attn_out": "post_attention_layernorm.output",
    "hook_resid_mid": "mlp.stream",
    "hook_mlp_in": "mlp.input",
    "ln2.hook_normalized": "post_feedforward_layernorm.normalized",
    "hook_mlp_out": "post_feedforward_layernorm.output",
}
_GPT2: Points = {
    "ln1.hook_normalized": "ln_1.normalized",
    "attn.hook_in": "attn.input",
    "attn.hook_z": "attn.c_proj.input",
    "attn.hook_out": "attn.output",
    "hook_attn_out": "attn.output",
    "hook_resid_mid": "ln_2.stream",
    "hook_mlp_in": "ln_2.input",
    "ln2.hook_normalized": "ln_2.normalized",
    "mlp.hook_in": "mlp.input",
    "mlp.hook_post": "mlp.c_proj.input",
    "mlp.hook_out": "mlp.output",
    "hook_mlp_out": "mlp.output",
}
_GPT_NEO = _GPT2 | {"attn.hook_z": "attn.attention.out_proj.input"}
# Attention and MLP beside each other have no residual between them; with one norm for both, no input of the MLP alone.
_PHI: Points = {
    "ln1.hook_normalized": "input_layernorm.normalized",
    "attn.hook_in": "self_attn.input",
    "attn.hook_z": "self_attn.dense.input",
    "attn.hook_out": "self_attn.output",
    "hook_attn_out": "self_attn.output",
    "mlp.hook_in": "mlp.input",
    "mlp.hook_post": "mlp.fc2.input",
    "mlp.hook_out": "mlp.output",
    "hook_mlp_out": "mlp.output",
}
_NEOX: Points = {
    "ln1.hook_normalized": "input_layernorm.normalized",
    "attn.hook_in": "attention.input",
    "attn.hook_z": "attention.dense.input",
    "attn.hook_out": "attention.output",
    "hook_attn_out": "attention.output",
    "hook_mlp_in": "post_attention_layernorm.input",
    "ln2.hook_normalized": "post_attention_layernorm.normalized",
    "mlp.hook_in": "mlp.input",
    "mlp.hook_post": "mlp.dense_4h_to_h.input",
    "mlp.hook_out": "mlp.output",
    "hook_mlp_out": "mlp.output",
}
_FALCON: Points = {
    "ln1.hook_normalized": "input_layernorm.normalized",
    "attn.hook_in": "self_attention.input",
    "attn.hook_z": "self_attention.dense.input",
    "attn.hook_out": "self_attention.output",
    "hook_attn_out": "self_attention.output",
    "mlp.hook_in": "mlp.input",
    "mlp.hook_post": "mlp.dense_4h_to_h.input",
    "mlp.hook_out": "mlp.output",
    "hook_mlp_out": "mlp.output",
}
_AFTER_ATTENTION: Points = {
    "hook_resid_mid": "post_attention_layernorm.stream",
    "hook_mlp_in": "post_attention_layernorm.input",
    "ln2.hook_normalized": "post_attention_layernorm.normalized",
}

# by config.model_type
FAMILIES: dict[str, Points] = {
    "llama": _PRE_NORM,
    "mistral": _PRE_NORM,
    "qwen2": _PRE_NORM,
    "qwen3": _PRE_NORM,
    "gemma": _PRE_NORM,
    "phi3": _PRE_NORM,
    "smollm3": _PRE_NORM,
    "olmo": _OLMO,
    "mixtral": _MOE,
    "qwen2_moe": _MOE,
    "qwen3_moe": _MOE,
    "olmoe": _MOE,
    "gpt_oss": _MOE,
    "gemma2": _NORMS_AROUND,
    "gemma3": _NORMS_AROUND,
    "gemma3_text": _NORMS_AROUND,
    "olmo2": _POST_NORM,
    "olmo3": _POST_NORM,
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "phi": _PHI,
    "gpt_neox": _NEOX,
    "gpt_neox, sequential": _NEOX | _AFTER_ATTENTION,
    "falcon": _FALCON,
    "falcon, two norms": _FALCON
    | {
        "ln1.hook_normalized": "ln_attn.normalized",
        "hook_mlp_in": "ln_mlp.input",
        "ln2.hook_normalized": "ln_mlp.normalized",
    },
    "falcon, sequential": _FALCON | _AFTER_ATTENTION,
}


def family(config: Any) -> str:
    """The key of a text model's config in FAMILIES, or its model type where that is not among them."""
    kind = getattr(config, "model_type", None) or "unnamed"
    if kind == "gpt_neox" and not config.use_parallel_residual:
        return "gpt_neox, sequential"
    if kind == "falcon" and not config.parallel_attn:
        return "falcon, sequential"
    if kind == "falcon" and config.num_ln_in_parallel_attn == 2:
        return "falcon, two norms"
    return kind
