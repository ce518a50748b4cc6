"""Gemma Scope 2: JumpReLU SAEs and transcoders of Gemma 3, ``config.json`` and ``params.safetensors`` in a folder.

    google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_big/

Without the configuration the path tells what it would.
"""

import re

from sparsesteer.activations import JumpReLU
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "Gemma Scope 2"
FILES = "config.json and params.safetensors"

_WEIGHTS, _CONFIG, _SKIP = "params.safetensors", "config.json", "affine_skip_connection"
_REPOSITORY = r"gemma-scope-2-(?P<size>\d+[bm])-(?P<tuning>pt|it)"
_FOLDER = r"/(?P<kind>resid_post|attn_out|mlp_out|transcoder)(_all)?/layer_(?P<layer>\d+)_"
_POINTS = {  # the places that configurations name, in a layer
    "resid_post": ("output", None),
    "attn_out": ("self_attn.o_proj.input", None),
    "mlp_out": ("post_feedforward_layernorm.output", None),
    "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
}
_POINT = r"model\.layers\.(\d+)\.(.+)"
_HOOKS = {
    "output": "blocks.{}.hook_resid_post",
    "self_attn.o_proj.input": "blocks.{}.attn.hook_z",
    "post_feedforward_layernorm.output": "blocks.{}.hook_mlp_out",
    "pre_feedforward_layernorm.output": "layers.{}.pre_feedforward_layernorm",  # a module's path means its output
}


def recognises(source: Source) -> bool:
    """A folder with ``params.safetensors``, or a safetensors file with its names."""
    own = source.own_tensors
    return source.has(_WEIGHTS) or (own is not None and own.has("w_enc", "w_dec"))


def read(source: Source) -> SAE:
    """Matrices are [D, F] and [F, D_out] as they are; b_dec is not subtracted from what is encoded."""
    file = source.own_tensors or source.tensors(_WEIGHTS)
    config = source.json(_CONFIG) if (source.folder / _CONFIG).is_file() else _config_by_path(source)
    if config.get("architecture") != "jump_relu":
        raise ValueError(f"{source.folder}: architecture {config.get('architecture')!r} is not read; jump_relu is")
    decoder = file.find("w_dec")
    if decoder is not None and len(decoder.shape) == 3:
        raise ValueError(
            f"{file.where} is a cross-layer transcoder or crosscoder: its features write to {decoder.shape[1]} layers, "
            "and a plan steers one"
        )
    affine = config.get("affine_connection", file.has(_SKIP))
    if affine is not file.has(_SKIP):
        raise ValueError(f"{file.where}: affine_connection is {affine!r}, {_SKIP} is there: {file.has(_SKIP)}")
    return source.sae(
        _site(source, config),
        W_enc=file.matrix("w_enc"),
        W_dec=file.matrix("w_dec"),
        W_skip=file.matrix(_SKIP).T if affine else None,
        b_enc=file.vector("b_enc"),
        b_dec=file.vector("b_dec"),
        activation=JumpReLU(file.vector("threshold")),
        apply_b_dec_to_input=False,
        transcoder=True if affine or config.get("hf_hook_point_out") is not None else None,
    )


def _config_by_path(source: Source) -> dict:
    config: dict = {"architecture": "jump_relu"}
    repository, folder = source.match(_REPOSITORY), source.match(_FOLDER)
    if repository is not None:
        config["model_name"] = f"gemma-3-{repository['size']}-{repository['tuning']}"
    if folder is not None:
        places = zip(("hf_hook_point_in", "hf_hook_point_out"), _POINTS[folder["kind"]], strict=True)
        config |= {name: point and f"model.layers.{folder['layer']}.{point}" for name, point in places}
    return config


def _site(source: Source, config: dict) -> Site:
    name = config.get("model_name")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{source.folder}: model_name should be a text, got {name!r}")
    return Site(
        name and _model(name),
        _hook(source, config.get("hf_hook_point_in")),
        _hook(source, config.get("hf_hook_point_out")),
    )


def _model(name: str) -> str:
    """The name on the Hugging Face hub: "gemma-v3-270m-pt" is google/gemma-3-270m."""
    name = name.removeprefix("google/").replace("-v3", "-3")
    return "google/" + (name.removesuffix("-pt") if "270m" in name else name)


def _hook(source: Source, point: object) -> str | None:
    if point is None:
        return None
    if not isinstance(point, str):
        raise ValueError(f"{source.folder}: a hook point should be a text, got {point!r}")
    found = re.fullmatch(_POINT, point)
    return _HOOKS[found[2]].format(found[1]) if found is not None and found[2] in _HOOKS else point
