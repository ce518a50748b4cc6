"""Every on-disk format of an SAE, and live sae_lens objects, to ``SAE``."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsesteer import explanations
from sparsesteer.activations import Activation, Gated, JumpReLU, ReLU, TopK
from sparsesteer.lowering import NORMALIZATIONS
from sparsesteer.sae import SAE
from sparsesteer.site import Site
from sparsesteer.storage import open_safetensors, parse_json

ARCHITECTURES = ("standard", "jumprelu", "topk", "gated")
_SUPPORTED = "a SAELens folder (cfg.json and sae_weights.safetensors)"
_LIVE = "the sae_lens object"
_STATISTICS = "feature_statistics.safetensors"
_FOLDED_BY_SAELENS = "expected_average_only_in"  # a training-time factor: SAELens applies nothing when it encodes


def load_from_disk(path: str | os.PathLike) -> SAE:
    """Read an SAE from a folder in SAELens's format; matrices stay on disk until they are needed.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not an SAE, truncated, or weights that disagree with the configuration.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"no such folder: {folder}")
    config_file, weights_file = folder / "cfg.json", folder / "sae_weights.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ValueError(f"{folder} is not a known SAE: {file.name} is missing; supported is {_SUPPORTED}")
    config = parse_json(config_file.read_bytes(), str(config_file))
    weights: dict[str, Any] = {
        name: tensor.load() if len(tensor.shape) < 2 else tensor
        for name, tensor in open_safetensors(weights_file).items()
    }
    sae = _from_parts(_modern_config(config, str(folder)), weights, str(folder), _maximum(folder / _STATISTICS))
    sae.explanations = explanations.beside(folder, sae.d_sae)
    return sae


def from_pretrained(release: str, sae_id: str) -> SAE:
    """Download a published SAE by sae-lens's names, e.g. ("gemma-scope-2b-pt-res-canonical", "layer_20/...").

    Raises:
        ImportError: sae-lens is not installed.
    """
    try:
        from sae_lens import SAE as LensSAE
    except ImportError as error:
        raise ImportError("SAE.from_pretrained needs sae-lens: pip install sparsesteer[lens]") from error
    loaded = from_saelens(LensSAE.from_pretrained(release, sae_id))
    loaded.site = replace(loaded.site, source=f"{release}/{sae_id}")
    return loaded


def from_saelens(sae: Any) -> SAE:
    """Take over a live sae_lens SAE of a standard, jumprelu, topk or gated architecture; tensors are shared."""
    config = getattr(sae, "cfg", None)
    if config is None or not hasattr(sae, "W_enc"):
        raise TypeError(f"from_saelens takes a sae_lens SAE, got {type(sae).__name__}")
    weights = {name: p.detach() for name, p in sae.named_parameters()}
    return _from_parts(_modern_config(config.to_dict(), _LIVE), weights, None, None)


def _maximum(statistics: Path) -> Tensor | None:
    """Each feature's largest activation, from the file beside the weights; None if there is none."""
    if not statistics.is_file():
        return None
    tensors = open_safetensors(statistics)
    if "maximum" not in tensors:
        raise ValueError(f"{statistics}: maximum is missing, it holds {', '.join(sorted(tensors))}")
    return _floating(tensors["maximum"].load())


def _modern_config(config: dict, where: str) -> dict:
    """The configuration in the names of sae_lens 6; older files are flat and use other names."""
    config = dict(config)
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: metadata in the configuration should be an object, got {metadata!r}")
    metadata = dict(metadata)
    for name in ("model_name", "hook_name", "hf_hook_name", "hook_name_out", "hf_hook_name_out", "neuronpedia_id"):
        if name in config:
            metadata.setdefault(name, config[name])
    if "hook_point" in config:
        metadata.setdefault("hook_name", config["hook_point"])
    config["metadata"] = metadata
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    config["activation_fn"] = activation
    config.setdefault("architecture", "topk" if activation == "topk" else "standard")
    if config["architecture"] == "standard" and activation == "topk":
        config["architecture"] = "topk"
    if "k" not in config and isinstance(config.get("activation_fn_kwargs"), dict):
        config["k"] = config["activation_fn_kwargs"].get("k")
    normalize = config.get("normalize_activations", "none")
    if isinstance(normalize, bool):
        normalize = _FOLDED_BY_SAELENS if normalize else "none"
    config["normalize_activations"] = "none" if normalize in (None, _FOLDED_BY_SAELENS) else normalize
    return config


def _from_parts(config: dict, weights: dict[str, Any], source: str | None, maximum: Tensor | None) -> SAE:
    where = source or _LIVE
    architecture, normalize = config["architecture"], config["normalize_activations"]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{where}: architecture {architecture!r} is not supported; {', '.join(ARCHITECTURES)} are")
    if not isinstance(normalize, str) or normalize not in NORMALIZATIONS:
        raise ValueError(
            f"{where}: normalize_activations={normalize!r} is not supported; {', '.join(NORMALIZATIONS)} are "
            "(fold a fitted normalisation into the weights with sae_lens)"
        )
    for name in ("W_enc", "W_dec", "b_dec"):
        if name not in weights:
            raise ValueError(f"{where}: {name} is missing from the weights, which hold {', '.join(sorted(weights))}")
    _check_factors(weights, where)
    _check_declared_shapes(config, weights, where)
    metadata = config["metadata"]
    return SAE(
        W_enc=weights["W_enc"],
        W_dec=weights["W_dec"],
        b_enc=None if architecture == "gated" else _floating(_required(weights, "b_enc", where)),
        b_dec=_floating(weights["b_dec"]),
        activation=_activation(architecture, config, weights, where),
        normalize=normalize,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        rescale_acts_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        site=Site(
            model_name=metadata.get("model_name"),
            hook_name=metadata.get("hook_name") or metadata.get("hf_hook_name"),
            hook_name_out=metadata.get("hook_name_out"),
            source=source,
            neuronpedia_id=metadata.get("neuronpedia_id"),
        ),
        feature_maximum=maximum,
    )


def _activation(architecture: str, config: dict, weights: dict[str, Any], where: str) -> Activation:
    if architecture == "jumprelu":
        return JumpReLU(threshold=_floating(_required(weights, "threshold", where)))
    if architecture == "topk":
        k = config.get("k")
        if not isinstance(k, int):
            raise ValueError(f"{where}: a topk SAE needs a whole number k in its configuration, got {k!r}")
        return TopK(k)
    if architecture == "gated":
        return Gated(**{name: _floating(_required(weights, name, where)) for name in ("b_gate", "b_mag", "r_mag")})
    if config["activation_fn"] != "relu":
        raise ValueError(
            f"{where}: activation function {config['activation_fn']!r} is not supported; relu and topk are"
        )
    return ReLU()


def _required(weights: dict[str, Any], name: str, where: str) -> Tensor:
    if name not in weights:
        raise ValueError(f"{where}: {name} is missing from the weights, which hold {', '.join(sorted(weights))}")
    return weights[name]


def _floating(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise ValueError(f"a bias or threshold should be a floating point vector, got {tensor!r}")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_factors(weights: dict[str, Any], where: str) -> None:
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = weights.get(name)
        if factor is not None and not torch.equal(factor, torch.ones_like(factor)):
            raise ValueError(f"{where}: {name} is not all ones; fold it into W_dec with sae_lens first")


def _check_declared_shapes(config: dict, weights: dict[str, Any], where: str) -> None:
    shape = tuple(weights["W_enc"].shape)
    if len(shape) != 2:
        raise ValueError(f"{where}: W_enc should be a matrix, got shape {list(shape)}")
    declared = config.get("d_in", shape[0]), config.get("d_sae", shape[1])
    if shape != declared:
        raise ValueError(f"{where}: the configuration says d_in, d_sae = {declared}, but W_enc has shape {list(shape)}")
