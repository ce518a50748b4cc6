"""Formats that SAELens has a loader for, written as their owners write them from random weights."""

import json
import math

import numpy as np
import torch
from format_case import D_OUT, D, F, lens_case, weights
from lens_offline import lens_loaded
from safetensors.torch import save_file

from sparsesteer import Site

SIZES = {"d_in": D, "d_sae": F}


def gemma_scope(kind, folder="layer_20/width_16k/average_l0_71", rename=None, save=np.savez):
    loader = "gemma_2_transcoder" if kind == "transcoders" else "gemma_2"
    hooks = {
        "res": ("blocks.20.hook_resid_post",),
        "mlp": ("blocks.20.hook_mlp_out",),
        "att": ("blocks.20.attn.hook_z",),
        "transcoders": ("blocks.20.ln2.hook_normalized", "blocks.20.hook_mlp_out"),
    }[kind]

    def write(root):
        repository = f"google/gemma-scope-2b-pt-{kind}"
        place = root / repository / folder
        place.mkdir(parents=True)
        save(place / "params.npz", **{(rename or {}).get(k, k): v.numpy() for k, v in weights().items()})
        d_out = {"d_out": D} if kind == "transcoders" else {}
        lens = lens_loaded(loader, root, repository, folder, **SIZES, **d_out)
        embedding = "embedding" in folder
        site = Site("google/gemma-2-2b", *(("hook_embed",) if embedding else hooks), source=str(place))
        return lens_case(place, lens, site)

    return write


def gemma_scope_2(folder, points, hooks, *, affine=None, d_out=D, config=True):
    def write(root):
        repository = "google/gemma-scope-2-1b-pt"
        place = root / repository / folder
        place.mkdir(parents=True)
        given = {k.lower(): v for k, v in weights(d_out=d_out).items()}
        if affine:
            given["affine_skip_connection"] = torch.randn(D, d_out, generator=torch.Generator().manual_seed(5))
        save_file(given, place / "params.safetensors")
        described = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "width": F, "l0": 100}
        described |= dict(zip(("hf_hook_point_in", "hf_hook_point_out"), points, strict=False))
        if affine is not None:
            described["affine_connection"] = affine
        if config:
            (place / "config.json").write_text(json.dumps(described))
        lens = lens_loaded("gemma_3", root, repository, folder)
        return lens_case(place, lens, Site("google/gemma-3-1b-pt", *hooks, source=str(place)), d_out=d_out)

    return write


def llama_scope(dtype=torch.float32, kind="R", hook="blocks.15.hook_resid_post"):
    def write(root):
        repository, folder = f"fnlp/Llama3_1-8B-Base-LX{kind}-8x", f"Llama3_1-8B-Base-L15{kind}-8x"
        place = root / repository / folder
        (place / "checkpoints").mkdir(parents=True)
        given = weights()
        unit = given["W_dec"] / given["W_dec"].norm(dim=-1, keepdim=True)
        linear = {
            "encoder.weight": given["W_enc"].T.contiguous(),
            "encoder.bias": given["b_enc"],
            "decoder.weight": unit.T.contiguous(),
            "decoder.bias": given["b_dec"],
        }
        save_file(
            {k: v.to(dtype) for k, v in linear.items()}, place / "checkpoints/final.safetensors", {"version": "0.1"}
        )
        described = {
            "hook_point_in": hook, "hook_point_out": hook, "use_decoder_bias": True, "d_model": D, "d_sae": F,
            "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": 8, "act_fn": "jumprelu",
            "jump_relu_threshold": 0.61328125, "norm_activation": "dataset-wise", "top_k": 50,
            "dataset_average_activation_norm": {"in": 8.375, "out": 8.375}, "sparsity_include_decoder_norm": True,
            "use_glu_encoder": False, "decoder_exactly_fixed_norm": False, "lp": 1,
        }  # fmt: skip
        (place / "hyperparams.json").write_text(json.dumps(described, indent=4))
        lens = lens_loaded("llama_scope", root, repository, folder, norm_scaling_factor=math.sqrt(D) / 8.375)
        site = Site("meta-llama/Llama-3.1-8B", hook, source=str(place))
        return lens_case(place, lens, site)

    return write


def linear_layers(loader, repository, file, site, prefix="", **overrides):
    """Goodfire's and qresearch's files: the state of two nn.Linear."""

    def write(root):
        place = root / repository
        place.mkdir(parents=True)
        given = weights()
        names = (f"encoder{prefix}", f"decoder{prefix}")
        encoder, decoder = torch.nn.Linear(D, F), torch.nn.Linear(F, D)
        encoder.load_state_dict({"weight": given["W_enc"].T, "bias": given["b_enc"]})
        decoder.load_state_dict({"weight": given["W_dec"].T, "bias": given["b_dec"]})
        module = torch.nn.ModuleDict(dict(zip(names, (encoder, decoder), strict=True)))
        torch.save(module.state_dict(), place / file)
        lens = lens_loaded(loader, root, repository, file, **SIZES, **overrides)
        return lens_case(place / file, lens, Site(*site, source=str(place / file)))

    return write


def qwen_scope(root):
    repository = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_9"
    file = root / repository / "layer5.sae.pt"
    file.parent.mkdir(parents=True)
    given = weights()
    turned = {"W_enc": given["W_enc"].T.contiguous(), "W_dec": given["W_dec"].T.contiguous()}
    torch.save(turned | {"b_enc": given["b_enc"], "b_dec": given["b_dec"]}, file)
    lens = lens_loaded("qwen_scope", root, repository, file.name, **SIZES)
    return lens_case(file, lens, Site("Qwen/Qwen3-1.7B-Base", "blocks.5.hook_resid_post", source=str(file)))


def circuit_tracer(root):
    place = root / "mwhanna/qwen3-4b-transcoders"
    place.mkdir(parents=True)
    given = weights(d_out=D)
    given.pop("threshold")
    given["W_enc"] = given["W_enc"].T.contiguous()
    file = place / "layer_12.safetensors"
    save_file(given, file)
    text = 'model_name: "Qwen/Qwen3-4B"\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n'
    (place / "config.yaml").write_text(text + "feature_output_hook: hook_mlp_out\ntranscoders:\n  - layer: 12\n")
    (place / "wandb-config.yaml").write_text(
        f"d_model: {{value: {D}}}\nd_feature: {{value: {F}}}\nbatch_size: {{value: 4}}\n"
    )
    lens = lens_loaded("mwhanna_transcoder", root, "mwhanna/qwen3-4b-transcoders", file.name)
    hooks = ("blocks.12.mlp.hook_in", "blocks.12.hook_mlp_out")
    return lens_case(file, lens, Site("Qwen/Qwen3-4B", *hooks, source=str(file)))


def attention_gpt2(root):
    repository = "ckkissane/attn-saes-gpt2-small-all-layers"
    file = root / repository / "gpt2-small_L5_Hcat_z_lr1.20e-03_v9.pt"
    file.parent.mkdir(parents=True)
    given = weights()
    given.pop("threshold")
    torch.save(given, file)
    described = {"act_size": D, "dict_size": F, "act_name": "blocks.5.attn.hook_z", "model_name": "gpt2-small"}
    (file.parent / f"{file.stem}_cfg.json").write_text(json.dumps(described))
    lens = lens_loaded("connor_rob_hook_z", root, repository, file.name)
    return lens_case(file, lens, Site("gpt2", "blocks.5.attn.hook_z", source=str(file)))


_LAYER = "model.layers.13"
_MLP = (f"{_LAYER}.pre_feedforward_layernorm.output", f"{_LAYER}.post_feedforward_layernorm.output")
_MLP_HOOKS = ("layers.13.pre_feedforward_layernorm", "blocks.13.hook_mlp_out")
_FOLDER = "layer_13_width_16k_l0_big"
_RESID = (f"{_LAYER}.output",)
CASES = {
    "gemma scope res": gemma_scope("res"),
    "gemma scope mlp": gemma_scope("mlp"),
    "gemma scope att": gemma_scope("att"),
    "gemma scope embedding": gemma_scope("res", "embedding/width_4k/average_l0_6"),
    "gemma scope packed": gemma_scope("res", save=np.savez_compressed),
    "gemma scope in lower case": gemma_scope("res", rename={"W_enc": "w_enc", "W_dec": "w_dec"}),
    "gemma scope transcoder": gemma_scope("transcoders"),
    "gemma scope transcoder wenc": gemma_scope("transcoders", rename={"W_enc": "wenc", "W_dec": "wdec"}),
    "gemma scope transcoder w_e": gemma_scope(
        "transcoders", rename={"W_enc": "w_e", "W_dec": "w_d", "b_enc": "b_e", "b_dec": "b_d"}
    ),
    "gemma scope 2": gemma_scope_2(f"resid_post/{_FOLDER}", _RESID, ("blocks.13.hook_resid_post",)),
    "gemma scope 2 att": gemma_scope_2(
        f"attn_out_all/{_FOLDER}", (f"{_LAYER}.self_attn.o_proj.input",), ("blocks.13.attn.hook_z",)
    ),
    "gemma scope 2 without config": gemma_scope_2(
        f"mlp_out/{_FOLDER}", (), ("blocks.13.hook_mlp_out",), config=False
    ),
    "gemma scope 2 transcoder": gemma_scope_2(f"transcoder_all/{_FOLDER}", _MLP, _MLP_HOOKS, affine=False),
    "gemma scope 2 skip transcoder": gemma_scope_2(
        f"transcoder/{_FOLDER}_affine", _MLP, _MLP_HOOKS, affine=True, d_out=D_OUT
    ),
    "gemma scope 2 skip transcoder without config": gemma_scope_2(
        f"transcoder/{_FOLDER}_affine", (), _MLP_HOOKS, affine=True, config=False
    ),
    "llama scope": llama_scope(),
    "llama scope bf16": llama_scope(torch.bfloat16, "M", "blocks.15.hook_mlp_out"),
    "goodfire": linear_layers(
        "goodfire", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth",
        ("meta-llama/Llama-3.1-8B-Instruct", "blocks.19.hook_resid_post"), "_linear",
    ),
    "goodfire 70b": linear_layers(
        "goodfire", "Goodfire/Llama-3.3-70B-Instruct-SAE-l50", "Llama-3.3-70B-Instruct-SAE-l50.pt",
        ("meta-llama/Llama-3.3-70B-Instruct", "blocks.50.hook_resid_post"), "_linear",
    ),
    "deepseek r1": linear_layers(
        "deepseek_r1", "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19", "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "blocks.19.hook_resid_post"),
    ),
    "qwen scope": qwen_scope,
    "circuit tracer": circuit_tracer,
    "attention gpt2": attention_gpt2,
}  # fmt: skip
