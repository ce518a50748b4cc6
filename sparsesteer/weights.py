"""Matrices of an SAE, in memory or in a file: the same few questions asked of both."""

import math

import torch
from torch import Tensor

from sparsesteer.storage import StoredTensor

Matrix = Tensor | StoredTensor


def check_matrices(W_enc: Matrix, W_dec: Matrix, W_skip: Matrix | None = None) -> None:
    """Raise unless W_enc is a floating point [D, F], W_dec a floating point [F, D_out], W_skip [D_out, D] or None."""
    matrices = {"W_enc": W_enc, "W_dec": W_dec} | ({} if W_skip is None else {"W_skip": W_skip})
    for name, matrix in matrices.items():
        if not isinstance(matrix, Matrix):
            raise TypeError(f"SAE: {name} should be a tensor, got {type(matrix).__name__}")
        if len(matrix.shape) != 2 or 0 in matrix.shape:
            raise ValueError(f"SAE: {name} should be a matrix, got shape {list(matrix.shape)}")
        check_floating(name, matrix)
        if isinstance(matrix, Tensor):
            check_finite(name, matrix)
        if device_of(matrix) != device_of(W_enc):
            raise ValueError(f"SAE: W_enc is on {device_of(W_enc)}, {name} on {device_of(matrix)}; move one of them")
    if W_dec.shape[0] != W_enc.shape[1]:
        raise ValueError(
            f"SAE: W_enc is [D, F] and W_dec is [F, D]; got {list(W_enc.shape)} and {list(W_dec.shape)}, "
            "which disagree (is one of them transposed?)"
        )
    if W_skip is not None and tuple(W_skip.shape) != (W_dec.shape[1], W_enc.shape[0]):
        raise ValueError(
            f"SAE: W_skip should have shape {[W_dec.shape[1], W_enc.shape[0]]}, from D to D_out, "
            f"got {list(W_skip.shape)}"
        )


def vector(name: str, given: Tensor | None, length: int, device: torch.device) -> Tensor:
    """A finite floating point [length] without autograd's interest in it, zeros if none is given; raises otherwise."""
    if given is None:
        return torch.zeros(length, device=device)
    if tuple(given.shape) != (length,):
        raise ValueError(f"SAE: {name} should have shape [{length}], got {list(given.shape)}")
    check_floating(name, given)
    check_finite(name, given)
    return given.detach().to(device)


def check_floating(name: str, tensor: Matrix) -> None:
    """Raise TypeError for integers, booleans and complex numbers."""
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"SAE: {name} should be floating point, got {tensor.dtype}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError if a value is NaN or infinite."""
    # a sum is finite unless a term is not (or it overflows), and needs no mask of the tensor's size
    if math.isfinite(tensor.sum(dtype=torch.float64).item()):
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    if len(bad):
        raise ValueError(
            f"SAE: {name} has NaN or infinite values, the first at {bad[0].tolist()}; the file may be damaged"
        )


def check_finite_rows(name: str, matrix: Matrix, rows: Tensor, features: Tensor) -> None:
    """Raise ValueError, naming the feature, if a row read for one of ``features`` [M] has NaN or infinite values."""
    bad = features.to(rows.device)[~torch.isfinite(rows).all(-1)]
    if len(bad):
        raise ValueError(
            f"SAE: {_in_file(name, matrix)} has NaN or infinite values at feature {int(bad[0])}; "
            "the file may be damaged"
        )


def _in_file(name: str, matrix: Matrix) -> str:
    return name if isinstance(matrix, Tensor) else f"{name} of {matrix.path}"


def device_of(matrix: Matrix) -> torch.device:
    """Where a matrix is; a stored one counts as on the CPU."""
    return matrix.device if isinstance(matrix, Tensor) else torch.device("cpu")


def constant(matrix: Matrix) -> Matrix:
    """The matrix without autograd's interest in it."""
    return matrix.detach() if isinstance(matrix, Tensor) else matrix


def whole(name: str, matrix: Matrix) -> Tensor:
    """All of it in memory; a file's values are checked as they come in."""
    if isinstance(matrix, Tensor):
        return matrix
    loaded = matrix.load()
    check_finite(_in_file(name, matrix), loaded)
    return loaded


def scaled(matrix: Matrix, factor: float) -> Matrix:
    """The matrix times a number, in fp32 at least; a stored one stays where it is."""
    return at_least_fp32(matrix) * factor if isinstance(matrix, Tensor) else matrix.scaled(factor)


def rows(matrix: Matrix, indices: Tensor) -> Tensor:
    """Rows ``indices`` [M] of a matrix, [M, width]."""
    return matrix[indices.to(matrix.device)] if isinstance(matrix, Tensor) else matrix.rows(indices)


def columns(matrix: Matrix, indices: Tensor) -> Tensor:
    """Columns ``indices`` [M] of a matrix as contiguous rows, [M, height]."""
    if isinstance(matrix, Tensor):
        return matrix.index_select(1, indices.to(matrix.device)).T.contiguous()
    return matrix.columns(indices)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """fp64 stays, all else becomes fp32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
