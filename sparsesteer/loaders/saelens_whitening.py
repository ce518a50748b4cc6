"""Checkpoints of SAELens that saw whitened activations (arXiv 2511.13981): the whitening is folded into the weights.

In training z = (x - mean) M is encoded, and x ~ z' M^-1 + mean decoded. A finished SAE has both in its weights already;
a checkpoint has them beside it, in ``activation_whitening.safetensors``.
"""

from typing import Any

import torch
from torch import Tensor

from sparsesteer import weights
from sparsesteer.activations import Gated
from sparsesteer.loaders.named_tensors import NamedTensors
from sparsesteer.loaders.source import Source

WHITENED = "covariance_whitening"
_STATISTICS = "activation_whitening.safetensors"


def fold_whitening(source: Source, parts: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``SAE`` for activations that are not whitened. Both matrices are read and multiplied in fp64.

    Raises:
        ValueError: the statistics are not there, or have other shapes; a transcoder, whose output has none.
    """
    if not (source.folder / _STATISTICS).is_file() or parts["transcoder"]:
        raise ValueError(
            f"{source.folder}: normalize_activations={WHITENED!r} needs {_STATISTICS}, which checkpoints have; "
            "fold it into the weights of an SAE with sae_lens"
        )
    file = source.tensors(_STATISTICS)
    mean = file.vector("mean").double()
    whitening, unwhitening = (_square(file, name, len(mean)) for name in ("matrix", "inverse_matrix"))
    W_enc, W_dec = (weights.whole(name, parts[name]).double() for name in ("W_enc", "W_dec"))
    if W_enc.shape[0] != len(mean) or W_dec.shape[1] != len(mean):
        raise ValueError(f"{file.where}: statistics of width {len(mean)} do not fit W_enc of {list(W_enc.shape)}")
    W_enc = whitening @ W_enc
    folded = {
        "W_enc": W_enc.float(),
        "W_dec": (W_dec @ unwhitening).float(),
        "b_dec": (parts["b_dec"].double() @ unwhitening + mean).float(),
        "normalize": "none",
    }
    if not parts["apply_b_dec_to_input"]:
        folded |= _shifted(parts, mean @ W_enc)
    return parts | folded


def _shifted(parts: dict[str, Any], shift: Tensor) -> dict[str, Any]:
    """What subtracting the mean does to the biases of the encoder, where b_dec does not do it."""
    gated = parts["activation"]
    if isinstance(gated, Gated):
        b_mag = gated.b_mag - shift * gated.r_mag.double().exp()
        return {"activation": Gated(b_gate=(gated.b_gate - shift).float(), b_mag=b_mag.float(), r_mag=gated.r_mag)}
    return {"b_enc": (parts["b_enc"] - shift).float()}


def _square(file: NamedTensors, name: str, width: int) -> Tensor:
    matrix = weights.whole(name, file.matrix(name))
    if tuple(matrix.shape) != (width, width):
        raise ValueError(f"{file.where}: {name} should have shape {[width, width]}, got {list(matrix.shape)}")
    return matrix.to(torch.float64)
