"""Codes of many samples, dense or sparse, as columns: a block of features at a time, nothing n x F."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsesteer.ops import SparseCodes


class CodeBlocks(Protocol):
    """Codes [n, F] that are read as columns."""

    @property
    def n_samples(self) -> int: ...

    @property
    def n_features(self) -> int: ...

    def columns(self, first: int, end: int) -> Tensor:
        """[end - first, n], fp32 or fp64."""
        ...


def blocks_of(codes: Any, n_features: int | None) -> CodeBlocks:
    """Codes of any kind.

    Args:
        codes: dense [n, F], tensor or array; a CSR matrix, torch's or SciPy's; or SparseCodes of n tokens.
        n_features: F of SparseCodes, which do not say it.

    Raises:
        TypeError, ValueError: codes of another kind or shape, that lack some of a token's features, or whose rows do
            not rise.
    """
    if isinstance(codes, SparseCodes):
        return _of_sparse_codes(codes, n_features)
    found: CodeBlocks
    if isinstance(codes, Tensor) and codes.layout == torch.sparse_csr:
        found = SparseRows.of(codes.crow_indices(), codes.col_indices(), codes.values(), codes.shape[1])
    elif getattr(codes, "format", None) == "csr":  # SciPy's
        parts = (torch.as_tensor(part) for part in (codes.indptr, codes.indices, codes.data))
        starts, features, values = parts
        found = SparseRows.of(starts, features, values, codes.shape[1])
    elif isinstance(codes, Tensor) and codes.layout != torch.strided or hasattr(codes, "indptr"):
        raise TypeError("mutual_information: sparse codes should be CSR (tensor.to_sparse_csr(), matrix.tocsr())")
    else:
        found = DenseCodes(_matrix(codes))
    if n_features not in (None, found.n_features):
        raise ValueError(f"mutual_information: the codes have {found.n_features} features, n_features is {n_features}")
    return found


def in_blocks(n_features: int, block: int) -> Iterator[tuple[int, int]]:
    """(first, end) of every block; the last one may be smaller."""
    for first in range(0, n_features, block):
        yield first, min(first + block, n_features)


@dataclass(frozen=True)
class DenseCodes:
    """A matrix [n, F]."""

    codes: Tensor

    @property
    def n_samples(self) -> int:
        """n."""
        return self.codes.shape[0]

    @property
    def n_features(self) -> int:
        """F."""
        return self.codes.shape[1]

    def columns(self, first: int, end: int) -> Tensor:
        """[end - first, n]."""
        return _computed(self.codes[:, first:end].T.contiguous())


@dataclass(frozen=True)
class SparseRows:
    """CSR: the entries of each row, by rising feature."""

    starts: Tensor  # int64 [n + 1]
    features: Tensor  # int32 or int64 [entries]
    values: Tensor  # [entries]
    n_features: int

    @classmethod
    def of(cls, starts: Tensor, features: Tensor, values: Tensor, n_features: int) -> "SparseRows":
        """On the CPU, and checked."""
        rows = cls(starts.long().cpu(), features.cpu(), _computed(values.detach()).cpu(), n_features)
        if len(rows.features) and not 0 <= int(rows.features.min()) <= int(rows.features.max()) < n_features:
            raise ValueError(f"mutual_information: codes of features outside of 0 to {n_features - 1}")
        falls = rows.features.diff() <= 0
        borders = rows.starts[1:-1]
        falls[borders[(borders > 0) & (borders < len(rows.features))] - 1] = False
        if falls.any():
            raise ValueError(
                "mutual_information: the features of a CSR row should rise, none twice; sum_duplicates() of SciPy and "
                "coalesce() before to_sparse_csr() put them in order"
            )
        return rows

    @property
    def n_samples(self) -> int:
        """n."""
        return len(self.starts) - 1

    def columns(self, first: int, end: int) -> Tensor:
        """[end - first, n]."""
        from_entry, to_entry = self._places(first), self._places(end)
        counts = to_entry - from_entry
        samples = torch.repeat_interleave(counts)
        skipped = from_entry - (counts.cumsum(0) - counts)
        entries = torch.arange(len(samples)) + skipped[samples]
        columns = self.values.new_zeros((end - first) * self.n_samples)
        columns[(self.features[entries].long() - first) * self.n_samples + samples] = self.values[entries]
        return columns.view(end - first, self.n_samples)

    def _places(self, feature: int) -> Tensor:
        """[n], each row's first entry that is not below a feature, by bisection in all rows at once."""
        low, high = self.starts[:-1].clone(), self.starts[1:].clone()
        while (low < high).any():
            middle = (low + high) // 2
            below = (low < high) & (self.features[middle.clamp(max=max(0, len(self.features) - 1))] < feature)
            low = torch.where(below, middle + 1, low)
            high = torch.where(below, high, middle)
        return low


def _of_sparse_codes(codes: SparseCodes, n_features: int | None) -> SparseRows:
    values, indices = codes.values.detach().cpu(), codes.indices.cpu()
    if values.dim() != 2 or values.shape != indices.shape:
        raise ValueError(
            f"mutual_information: codes should be of n tokens, values and indices [n, K]; got {list(values.shape)} and "
            f"{list(indices.shape)}"
        )
    if codes.counts.numel() and int(codes.counts.max()) > values.shape[1]:
        raise ValueError(
            f"mutual_information: a token has {int(codes.counts.max())} active features and the codes hold "
            f"{values.shape[1]} of them; encode without k, or with a larger one"
        )
    indices, order = indices.sort(-1)
    kept = indices >= 0
    starts = torch.nn.functional.pad(kept.sum(-1).cumsum(0), (1, 0))
    if n_features is None:
        n_features = int(indices.max()) + 1 if indices.numel() else 0
    return SparseRows.of(starts, indices[kept], values.gather(-1, order)[kept], n_features)


def _matrix(codes: Any) -> Tensor:
    matrix = torch.as_tensor(codes).detach()
    if matrix.dim() != 2 or matrix.is_complex():
        raise ValueError(f"mutual_information: codes should be a matrix [n, F], got {list(matrix.shape)}")
    return matrix


def _computed(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
