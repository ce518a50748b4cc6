"""An SAE as a folder in SAELens's format, the one that everybody reads."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsesteer import explanations, weights
from sparsesteer.activations import Activation, Gated, JumpReLU, ReLU, Slots, TopK
from sparsesteer.decoding import fold_decoder
from sparsesteer.loaders.saelens import CONFIG, SLOTS_REST, STATISTICS, WEIGHTS
from sparsesteer.loaders.saelens_config import SITE

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

_WRITTEN_AS = "6.0.0"  # the version of SAELens whose configuration this is


def save(sae: "SAE", path: str | os.PathLike) -> Path:
    """Write ``cfg.json`` and ``sae_weights.safetensors`` into a new folder, which is complete or not there at all.

    Decoder norms that activations are in units of are folded into the weights, but for TopK, for which SAELens has a
    rule. ``feature_maximum`` and explanations are written beside them. An SAE with slots is written in the same form
    under an architecture of our own, "slots", which this package alone reads.

    Raises:
        ValueError: an SAE that SAELens has no architecture for: identity, transcoders of TopK, gated or slots, slots
            behind gated features, SAEs with a skip connection that are no transcoders.
        FileExistsError: there is something at ``path`` already.
    """
    path = Path(path)
    architecture = _architecture(sae)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"SAE.save: {path} exists already; remove it, or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as outside:
        folder = Path(outside) / path.name
        folder.mkdir()
        tensors = _tensors(sae)
        save_file(tensors, folder / WEIGHTS)
        if sae.feature_maximum is not None:
            save_file({"maximum": _written(sae.feature_maximum)}, folder / STATISTICS)
        if sae.explanations is not None:
            sae.explanations.save(folder / explanations.FILE_NAME)
        config = _configuration(sae, architecture, tensors["W_enc"].dtype)
        (folder / CONFIG).write_text(json.dumps(config, indent=2))
        os.replace(folder, path)  # onto nothing, or an empty folder
    return path


def _architecture(sae: "SAE") -> str:
    kinds: dict[type[Activation], str] = {ReLU: "standard", JumpReLU: "jumprelu", TopK: "topk", Gated: "gated"}
    kind = kinds.get(type(sae.activation))
    if isinstance(sae.activation, Slots) and type(sae.activation.rest) in SLOTS_REST:
        kind = "slots"
    if sae.transcoder:
        kind = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}.get(kind or "")
    skip = sae.W_skip is not None
    if skip and kind is not None:
        kind = kind.replace("transcoder", "skip_transcoder") if sae.transcoder else None
    if kind is None:
        what = f"{type(sae.activation).__name__} {'transcoder' if sae.transcoder else 'SAE'}"
        raise ValueError(f"SAE.save: SAELens has no architecture for a {what}{' with a skip connection' * skip}")
    return kind


def _tensors(sae: "SAE") -> dict[str, Tensor]:
    """The weights by SAELens's names, all in one dtype: it casts them to the one that its configuration names."""
    W_enc, W_dec = weights.whole("W_enc", sae.W_enc), weights.whole("W_dec", sae.W_dec)
    biases = {"b_enc": sae.b_enc, "b_dec": sae.b_dec, **_activation_tensors(sae)}
    if sae.rescale_acts_by_decoder_norm and not isinstance(sae.activation, TopK):
        norms = weights.at_least_fp32(W_dec).norm(dim=-1)
        W_enc, W_dec = weights.at_least_fp32(W_enc) * norms, fold_decoder(sae, W_dec)
        biases["b_enc"] = biases["b_enc"] * norms
    if isinstance(sae.activation, Gated):
        biases.pop("b_enc")
    skip = {} if sae.W_skip is None else {"W_skip": weights.whole("W_skip", sae.W_skip)}
    tensors = {"W_enc": W_enc, "W_dec": W_dec, **skip, **biases}
    dtype = W_enc.dtype
    for tensor in tensors.values():
        dtype = torch.promote_types(dtype, _least_dtype(tensor))
    return {name: _written(tensor.to(dtype)) for name, tensor in tensors.items()}


def _activation_tensors(sae: "SAE") -> dict[str, Tensor]:
    activation = sae.activation.rest if isinstance(sae.activation, Slots) else sae.activation
    if isinstance(activation, JumpReLU):
        table = torch.float64 if sae.W_enc.dtype == torch.float64 else torch.float32
        return {"threshold": torch.as_tensor(activation.threshold, dtype=table).expand(sae.d_sae)}
    if isinstance(activation, Gated):
        return {"b_gate": activation.b_gate, "b_mag": activation.b_mag, "r_mag": activation.r_mag}
    return {}


def _least_dtype(tensor: Tensor) -> torch.dtype:
    """The narrowest of bf16, fp16, fp32 and fp64 that holds every value as it is."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
            return dtype
    return torch.float64


def _written(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _configuration(sae: "SAE", architecture: str, dtype: torch.dtype) -> dict:
    told = {name: getattr(sae.site, name) for name in SITE}
    config = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": sae.normalize,
        "reshape_activations": "hook_z" if (sae.site.hook_name or "").endswith("hook_z") else "none",
        "metadata": {name: text for name, text in told.items() if text is not None} | {"sae_lens_version": _WRITTEN_AS},
    }
    if sae.transcoder:
        config["d_out"] = sae.d_out
    if isinstance(sae.activation, TopK):
        config |= {"k": sae.activation.k, "rescale_acts_by_decoder_norm": sae.rescale_acts_by_decoder_norm}
    if isinstance(sae.activation, Slots):
        config |= {"n_slots": sae.activation.n, "rest": SLOTS_REST[type(sae.activation.rest)]}
    return config
