"""The library dictionary_learning: ``config.json`` and ``ae.pt`` in a folder per trainer; SAEBench and others use it.

    canrager/lm_sae/pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0/

``dict_class`` in the configuration names the class. Names of tensors have changed over time; all are known here.
"""

import re
from collections.abc import Callable
from typing import Any

from sparsesteer.activations import Gated, JumpReLU, ReLU, TopK
from sparsesteer.loaders.named_tensors import NamedTensors
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site
from sparsesteer.weights import Matrix

NAME = "dictionary_learning"
FILES = "config.json and ae.pt"

_WEIGHTS, _CONFIG = "ae.pt", "config.json"
_B_DEC = ("b_dec", "bias", "decoder_bias", "decoder.bias")
_HOOKS = {"resid_post": "hook_resid_post", "resid_pre": "hook_resid_pre", "attn": "hook_attn_out",
          "attention": "hook_attn_out", "mlp": "hook_mlp_out"}  # fmt: skip
_SUBMODULE = r"(resid_post|resid_pre|attn|attention|mlp)(?:_out)?_layer_?(\d+)"


def recognises(source: Source) -> bool:
    """A folder with both files, or the weights in it."""
    return source.has(_WEIGHTS, _CONFIG)


def read(source: Source) -> SAE:
    """encoder.weight [F, D] and decoder.weight [D, F] are used transposed where they lie, W_enc and W_dec as is."""
    file, trainer = source.tensors(_WEIGHTS), source.json(_CONFIG).get("trainer")
    where = str(source.folder / _CONFIG)
    if not isinstance(trainer, dict):
        raise ValueError(f"{where}: trainer should be an object, got {trainer!r}")
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise ValueError(f"{where}: dict_class {kind!r} is not read; {', '.join(_CLASSES)} are")
    parts = {"apply_b_dec_to_input": True} | _CLASSES[kind](source, file, trainer)
    return source.sae(
        _site(trainer, where),
        W_enc=_matrix(file, "encoder.weight", "W_enc"),
        W_dec=_matrix(file, "decoder.weight", "W_dec", "decoder"),
        b_dec=file.vector(*_B_DEC),
        **parts,
    )


def _matrix(file: NamedTensors, linear: str, *plain: str) -> Matrix:
    """The weight of an nn.Linear transposed, or a matrix as it is."""
    file.find(linear, *plain)  # raises if both are there
    return file.matrix(linear).T if file.has(linear) else file.matrix(*plain)


def _auto_encoder(source: Source, file: NamedTensors, trainer: dict) -> dict[str, Any]:
    # the library gives decoder rows the norm 1 when it loads this class, and activations what they lose
    return {"b_enc": _b_enc(file), "activation": ReLU(), "rescale_acts_by_decoder_norm": True}


def _auto_encoder_new(source: Source, file: NamedTensors, trainer: dict) -> dict[str, Any]:
    return {"b_enc": _b_enc(file), "activation": ReLU(), "apply_b_dec_to_input": False}


def _gated(source: Source, file: NamedTensors, trainer: dict) -> dict[str, Any]:
    parts = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
    return {"activation": Gated(**{name: file.vector(stored) for name, stored in parts.items()})}


def _jump_relu(source: Source, file: NamedTensors, trainer: dict) -> dict[str, Any]:
    return {"b_enc": _b_enc(file), "activation": JumpReLU(file.vector("threshold")), "apply_b_dec_to_input": False}


def _top_k(source: Source, file: NamedTensors, trainer: dict) -> dict[str, Any]:
    told = trainer.get("k")
    if file.has("k"):
        stored = file.number("k")
        if told not in (None, stored):
            raise ValueError(f"{file.where}: k is {stored!r}, but {told!r} in {_CONFIG}")
        told = stored
    return {"b_enc": _b_enc(file), "activation": TopK(source.chosen_k(told))}


def _batch_top_k(source: Source, file: NamedTensors, trainer: dict) -> dict[str, Any]:
    if not file.has("threshold"):
        raise ValueError(
            f"{file.where}: threshold is missing; batch top-k says nothing about a token by itself, "
            "and versions before 2024-12-22 stored no threshold"
        )
    return {"b_enc": _b_enc(file), "activation": JumpReLU(float(file.number("threshold")))}


def _b_enc(file: NamedTensors) -> Any:
    return file.vector("b_enc", "encoder.bias")


_CLASSES: dict[str, Callable[[Source, NamedTensors, dict], dict[str, Any]]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _batch_top_k,
}


def _site(trainer: dict, where: str) -> Site:
    model, layer, submodule = trainer.get("lm_name"), trainer.get("layer"), trainer.get("submodule_name")
    if not isinstance(model, str | None) or not isinstance(submodule, str | None):
        raise ValueError(f"{where}: lm_name and submodule_name should be texts, got {model!r} and {submodule!r}")
    if type(layer) is not int or layer < 0:
        return Site(model)
    if submodule is None:
        return Site(model, f"blocks.{layer}.hook_resid_post")
    found = re.fullmatch(_SUBMODULE, submodule)
    # a submodule of another layer than the trainer's is no name to rely on
    known = found is not None and int(found[2]) == layer
    return Site(model, f"blocks.{layer}.{_HOOKS[found[1]]}" if found is not None and known else None)
