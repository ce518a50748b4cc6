"""Llama Scope (arXiv 2410.20526): SAEs of Llama 3.1 8B, ``hyperparams.json`` and ``checkpoints/final.safetensors``.

    fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x/

They were trained on activations times s = sqrt(D) / (their average norm). Features are in the units of SAELens, of
s x; the library of Llama Scope itself divides them by s, and so its threshold, which SAELens multiplies.
"""

import math

import torch

from sparsesteer import weights
from sparsesteer.activations import Activation, JumpReLU, ReLU, TopK
from sparsesteer.loaders.named_tensors import NamedTensors
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "Llama Scope"
FILES = "hyperparams.json and checkpoints/final.safetensors"

_WEIGHTS, _CONFIG = "checkpoints/final.safetensors", "hyperparams.json"
_MODEL = r"Llama3_1-8B-Base-L"
_SAMPLE, _UNIT_TOLERANCE = 64, 0.02  # decoder rows looked at, and what bf16 leaves of a norm of 1


def recognises(source: Source) -> bool:
    """A folder with both files, or the weights in it."""
    return source.has(_WEIGHTS, _CONFIG)


def read(source: Source) -> SAE:
    """Matrices are nn.Linear's, [F, D] and [D, F]: both are used transposed, where they lie."""
    config, file = source.json(_CONFIG), source.tensors(_WEIGHTS)
    where = str(source.folder / _CONFIG)
    if config.get("use_glu_encoder"):
        raise ValueError(f"{where}: use_glu_encoder, a second encoder, is not read")
    norm = config.get("norm_activation", "token-wise")
    if norm not in ("dataset-wise", "token-wise", "inference", "none"):
        raise ValueError(f"{where}: norm_activation {norm!r} is not read")
    scale_in, scale_out = _scales(config, where) if norm == "dataset-wise" else (1.0, 1.0)
    W_enc, W_dec = file.matrix("encoder.weight").T, file.matrix("decoder.weight").T
    if config.get("sparsity_include_decoder_norm", True):
        _check_unit_norms(W_dec, file)
    return source.sae(
        _site(source, config, where),
        W_enc=weights.scaled(W_enc, scale_in),
        W_dec=weights.scaled(W_dec, 1 / scale_out),
        b_enc=file.vector("encoder.bias"),
        b_dec=file.vector("decoder.bias") / scale_out,
        activation=_activation(source, config, where, scale_in),
        normalize="constant_norm_rescale" if norm == "token-wise" else "none",
        apply_b_dec_to_input=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
    )


def _scales(config: dict, where: str) -> tuple[float, float]:
    """What activations that are read, and those that are written, were multiplied by in training."""
    width, norms = _number(config, "d_model", where), config.get("dataset_average_activation_norm")
    if not isinstance(norms, dict):
        raise ValueError(f"{where}: dataset_average_activation_norm should be an object, got {norms!r}")
    read, written = (_number({"in": norms.get("in"), "out": norms.get("out", norms.get("in"))}, name, where)
                     for name in ("in", "out"))  # fmt: skip
    return math.sqrt(width) / read, math.sqrt(width) / written


def _activation(source: Source, config: dict, where: str, scale: float) -> Activation:
    name = config.get("act_fn", "jumprelu" if "jump_relu_threshold" in config else None)
    threshold = config.get("jump_relu_threshold", 0.0)
    if name == "jumprelu" or (name == "topk" and threshold):  # TopK SAEs are used with the threshold found for them
        return JumpReLU(_number(config, "jump_relu_threshold", where) * scale)
    if name == "topk":
        return TopK(source.chosen_k(config.get("top_k")))
    if name == "relu":
        return ReLU()
    raise ValueError(f"{where}: act_fn {name!r} is not read; jumprelu, topk and relu are")


def _check_unit_norms(W_dec: weights.Matrix, file: NamedTensors) -> None:
    """Its library gives such SAEs decoder rows of norm 1 when it loads them; published ones have them."""
    rows = weights.rows(W_dec, torch.arange(min(_SAMPLE, W_dec.shape[0])))
    norms = weights.at_least_fp32(rows).norm(dim=-1)
    if ((norms - 1).abs() > _UNIT_TOLERANCE).any():
        raise ValueError(
            f"{file.where}: sparsity_include_decoder_norm is set, but decoder rows have norms other than 1; "
            "transform the parameters to unit decoder norm first"
        )


def _number(config: dict, name: str, where: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{where}: {name} should be a number from 0, got {value!r}")
    if value == 0 and name != "jump_relu_threshold":
        raise ValueError(f"{where}: {name} should be positive, got 0")
    return float(value)


def _site(source: Source, config: dict, where: str) -> Site:
    read, written = config.get("hook_point_in"), config.get("hook_point_out")
    for hook in (read, written):
        if hook is not None and not isinstance(hook, str):
            raise ValueError(f"{where}: a hook point should be a text, got {hook!r}")
    model = "meta-llama/Llama-3.1-8B" if source.match(_MODEL) else None
    return Site(model, read, None if written == read else written)
