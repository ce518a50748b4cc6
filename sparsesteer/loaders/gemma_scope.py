"""Gemma Scope (arXiv 2408.05147): JumpReLU SAEs and transcoders of Gemma 2, one ``params.npz`` each.

    google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz

The path alone tells model and site. SAEs of the token embeddings were trained on embeddings divided by sqrt(D).
"""

import math

from sparsesteer import weights
from sparsesteer.activations import JumpReLU
from sparsesteer.loaders.named_tensors import NamedTensors
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "Gemma Scope"
FILES = "params.npz"

_REPOSITORY = r"gemma-scope-(?P<size>\d+b)-(?P<tuning>pt|it)-(?P<kind>res|mlp|att|transcoders)"
_LAYER = r"/layer_(?P<layer>\d+)/"
_EMBEDDING = r"/embedding/"
_HOOKS = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
_ALIASES = {
    "W_enc": ("w_enc", "wenc", "w_e"),
    "W_dec": ("w_dec", "wdec", "w_d"),
    "b_enc": ("b_enc", "benc", "b_e"),
    "b_dec": ("b_dec", "bdec", "b_d"),
}


def recognises(source: Source) -> bool:
    """A folder with ``params.npz``, or an .npz file."""
    return source.has("params.npz") or (source.file is not None and source.file.suffix == ".npz")


def read(source: Source) -> SAE:
    """Matrices are [D, F] and [F, D] as they are; b_dec is not subtracted from what is encoded."""
    file = _in_lower_case(source.own_tensors or source.tensors("params.npz"))
    W_enc, W_dec = file.matrix(*_ALIASES["W_enc"]), file.matrix(*_ALIASES["W_dec"])
    file.check_ones("scaling_factor")
    if source.match(_EMBEDDING):
        root = math.sqrt(W_enc.shape[0])
        W_enc, W_dec = weights.scaled(W_enc, 1 / root), weights.scaled(W_dec, root)
    return source.sae(
        _site(source),
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=file.vector(*_ALIASES["b_enc"]),
        b_dec=file.vector(*_ALIASES["b_dec"]),
        activation=JumpReLU(file.vector("threshold")),
        apply_b_dec_to_input=False,
    )


def _in_lower_case(file: NamedTensors) -> NamedTensors:
    lower = {name.lower(): tensor for name, tensor in file.tensors.items()}
    if len(lower) != len(file.tensors):
        raise ValueError(f"{file.where}: two of {', '.join(sorted(file.tensors))} are names of one thing")
    return NamedTensors(file.where, lower)


def _site(source: Source) -> Site:
    repository, layer = source.match(_REPOSITORY), source.match(_LAYER)
    if repository is None:
        return Site()
    model = f"google/gemma-2-{repository['size']}" + ("-it" if repository["tuning"] == "it" else "")
    if source.match(_EMBEDDING):
        return Site(model, "hook_embed")
    if layer is None:
        return Site(model)
    hooks = (None if hook is None else f"blocks.{layer['layer']}.{hook}" for hook in _HOOKS[repository["kind"]])
    return Site(model, *hooks)
