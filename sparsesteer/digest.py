"""What tells two SAEs apart, without reading files of gigabytes."""

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer import weights
from sparsesteer.storage import StoredTensor

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

# of each matrix: a few of the D, many of the F; a file is read in part, whichever of them lie side by side in it
_WIDTHS, _FEATURES = 16, 1024


def digest_of(sae: "SAE") -> str:
    """SHA-256 over shapes, rules, all biases and thresholds, and an evenly spaced grid out of every matrix."""
    sha = hashlib.sha256()
    rules = (sae.normalize, sae.apply_b_dec_to_input, sae.rescale_acts_by_decoder_norm)
    sha.update(repr((sae.d_in, sae.d_sae, *rules)).encode())
    if sae.transcoder:
        sha.update(repr(("transcoder", sae.d_out)).encode())
    for value in (*sae.activation.contents(), sae.b_enc, sae.b_dec):
        sha.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    sha.update(_bytes(_grid(sae.W_enc, _WIDTHS, _FEATURES)))
    sha.update(_bytes(_grid(sae.W_dec.T, _WIDTHS, _FEATURES)))
    if sae.W_skip is not None:
        sha.update(b"skip" + _bytes(_grid(sae.W_skip, _WIDTHS, _FEATURES)))
    return sha.hexdigest()


def _grid(matrix: weights.Matrix, height: int, width: int) -> Tensor:
    """[height, width] evenly spaced numbers out of a matrix."""
    rows, columns = _spread(matrix.shape[0], height), _spread(matrix.shape[1], width)
    if isinstance(matrix, StoredTensor) and not matrix.rows_lie_together:
        return matrix.columns(columns)[:, rows].T
    return weights.rows(matrix, rows)[:, columns]


def _spread(length: int, count: int) -> Tensor:
    return torch.arange(count) * (length - 1) // (count - 1)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().float().contiguous().numpy().tobytes()
