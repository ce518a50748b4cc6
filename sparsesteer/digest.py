"""What tells two SAEs apart, without reading files of gigabytes."""

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer import weights

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

_ROWS = 16


def digest_of(sae: "SAE") -> str:
    """SHA-256 over shapes, rules, all biases and thresholds, and evenly spaced rows of both matrices."""
    sha = hashlib.sha256()
    rules = (sae.normalize, sae.apply_b_dec_to_input, sae.rescale_acts_by_decoder_norm)
    sha.update(repr((sae.d_in, sae.d_sae, *rules)).encode())
    for value in (*sae.activation.contents(), sae.b_enc, sae.b_dec):
        sha.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    for matrix in (sae.W_enc, sae.W_dec):
        spread = torch.arange(_ROWS) * (matrix.shape[0] - 1) // (_ROWS - 1)
        sha.update(_bytes(weights.rows(matrix, spread)))
    return sha.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().float().contiguous().numpy().tobytes()
