"""Activation functions of SAEs: dense form for whole vectors of features, row form for the edited few."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsesteer._layout import N_COLUMNS, Column


@dataclass(frozen=True, eq=False)
class Activation:
    """f = max(slope z + shift, floor) where z > threshold, else 0; each a number or one per feature [F].

    Every activation of the package is of this form; ``TopK`` adds a rank condition.
    """

    def fields(self) -> dict[Column, float | Tensor]:
        """The values of the activation's columns in a row table."""
        raise NotImplementedError

    def check(self, n_features: int) -> None:
        """Raise ValueError unless every per-feature tensor is finite and of length ``n_features``."""
        for column, value in self.fields().items():
            if isinstance(value, Tensor) and value.dim() > 0:
                if tuple(value.shape) != (n_features,):
                    raise ValueError(
                        f"{type(self).__name__}: {column.name.lower()} should have shape [{n_features}], one value per "
                        f"feature of W_dec, got {list(value.shape)}"
                    )
                if torch.isnan(value).any() or (column != Column.THRESHOLD and torch.isinf(value).any()):
                    raise ValueError(f"{type(self).__name__}: {column.name.lower()} has NaN or infinite values")

    def table(self, features: Tensor, bias: Tensor) -> Tensor:
        """A row table [M, 10] without edits for ``features`` [M], in the dtype of ``bias`` [M]."""
        rows = torch.zeros(len(features), N_COLUMNS, dtype=bias.dtype)
        rows[:, Column.BIAS] = bias
        for column, value in self.fields().items():
            per_feature = isinstance(value, Tensor) and value.dim() > 0
            rows[:, column] = value[features].to(rows) if per_feature else value  # type: ignore[index]
        return rows


def _row_form(threshold=-math.inf, slope=1.0, shift=0.0, floor=0.0) -> dict[Column, float | Tensor]:
    return {Column.THRESHOLD: threshold, Column.SLOPE: slope, Column.SHIFT: shift, Column.FLOOR: floor}


@dataclass(frozen=True, eq=False)
class ReLU(Activation):
    """f = max(z, 0)."""

    def fields(self):
        return _row_form()


@dataclass(frozen=True, eq=False)
class Identity(Activation):
    """f = z."""

    def fields(self):
        return _row_form(floor=-math.inf)


@dataclass(frozen=True, eq=False)
class JumpReLU(Activation):
    """f = max(z, 0) where z > threshold, else 0. BatchTopK SAEs are saved in this form.

    threshold: [F] or one number for all features.
    """

    threshold: Tensor | float

    def fields(self):
        return _row_form(threshold=self.threshold)


@dataclass(frozen=True, eq=False)
class TopK(Activation):
    """f = max(z, 0) where fewer than k features come before it (larger, or equal with a lower index)."""

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"TopK: k should be a positive integer, got {self.k!r}")

    def fields(self):
        return _row_form()


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """f = max(exp(r_mag) z + b_mag, 0) where z + b_gate > 0, else 0; all [F], z without a bias of its own."""

    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def fields(self):
        return _row_form(threshold=-self.b_gate, slope=self.r_mag.exp(), shift=self.b_mag)


@dataclass(frozen=True, eq=False)
class Slots(Activation):
    """The last n features linear (concept slots of AlignSAE, 2512.02004), all before them as ``rest``."""

    n: int
    rest: Activation
    n_features: int | None = None  # set by the SAE that owns the activation

    def __post_init__(self) -> None:
        if isinstance(self.rest, TopK | Slots):
            raise ValueError(f"Slots: rest should be an elementwise activation, got {type(self.rest).__name__}")

    def fields(self):
        if self.n_features is None:
            raise ValueError("Slots: the number of features is unknown before an SAE holds this activation")
        joined = {}
        for column, value in self.rest.fields().items():
            column_values = torch.full((self.n_features,), 0.0)
            column_values[:] = value
            column_values[self.n_features - self.n :] = _row_form(floor=-math.inf)[column]
            joined[column] = column_values
        return joined
