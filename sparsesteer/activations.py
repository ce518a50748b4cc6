"""Activation functions of SAEs: dense form for whole vectors of features, row form for the edited few."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsesteer._layout import N_COLUMNS, Column

Columns = dict[Column, float | Tensor]


@dataclass(frozen=True, eq=False)
class Activation:
    """f = max(slope z + shift, floor) where z > threshold, else 0; each a number or one per feature [F].

    Every activation of the package is of this form; ``TopK`` adds a rank condition.
    """

    def columns(self, n_features: int) -> Columns:
        """The values of the activation's columns in a row table: numbers, or tensors [F]."""
        raise NotImplementedError

    def check(self, n_features: int) -> None:
        """Raise ValueError unless no value is NaN and every per-feature tensor has length ``n_features``."""
        for column, value in self.columns(n_features).items():
            where = f"{type(self).__name__}: {column.name.lower()}"
            if not isinstance(value, Tensor | int | float):
                raise TypeError(f"{where} should be a tensor or a number, got {type(value).__name__}")
            value = torch.as_tensor(value)
            if value.dim() > 0 and tuple(value.shape) != (n_features,):
                raise ValueError(
                    f"{where} should have shape [{n_features}], one value per feature, got {list(value.shape)}"
                )
            never_infinite = column in (Column.SLOPE, Column.SHIFT)
            if torch.isnan(value).any() or (never_infinite and torch.isinf(value).any()):
                raise ValueError(f"{where} has NaN or infinite values")

    def table(self, features: Tensor, bias: Tensor, n_features: int) -> Tensor:
        """A row table [M, 10] without edits for ``features`` [M], in the dtype and place of ``bias`` [M]."""
        rows = bias.new_zeros(len(features), N_COLUMNS)
        rows[:, Column.BIAS] = bias
        for column, value in self.columns(n_features).items():
            # fp64 first: as a plain number, one beyond fp32 would be an error and not infinity
            values = torch.as_tensor(value, dtype=torch.float64, device=rows.device)
            rows[:, column] = values[features] if values.dim() else values
        return rows

    def to(self, device: torch.device | str) -> "Activation":
        """The activation with its tensors on another device."""
        moved = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor | Activation)}
        return replace(self, **moved)

    def contents(self) -> Iterator[object]:
        """Its name and values, in a fixed order: what tells two activations apart."""
        yield type(self).__name__
        for _, value in sorted(vars(self).items()):
            if isinstance(value, Activation):
                yield from value.contents()
            else:
                yield value


def _row_form(
    threshold: float | Tensor = -math.inf,
    slope: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
    floor: float | Tensor = 0.0,
) -> Columns:
    return {Column.THRESHOLD: threshold, Column.SLOPE: slope, Column.SHIFT: shift, Column.FLOOR: floor}


@dataclass(frozen=True, eq=False)
class ReLU(Activation):
    """f = max(z, 0)."""

    def columns(self, n_features: int) -> Columns:
        return _row_form()


@dataclass(frozen=True, eq=False)
class Identity(Activation):
    """f = z."""

    def columns(self, n_features: int) -> Columns:
        return _row_form(floor=-math.inf)


@dataclass(frozen=True, eq=False)
class JumpReLU(Activation):
    """f = max(z, 0) where z > threshold, else 0. BatchTopK SAEs are saved in this form.

    threshold: [F] or one number for all features; infinity silences a feature.
    """

    threshold: Tensor | float

    def columns(self, n_features: int) -> Columns:
        return _row_form(threshold=self.threshold)


@dataclass(frozen=True, eq=False)
class TopK(Activation):
    """f = max(z, 0) where fewer than k features come before it (larger, or equal with a lower index)."""

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"TopK: k should be a positive integer, got {self.k!r}")

    def columns(self, n_features: int) -> Columns:
        return _row_form()


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """f = max(exp(r_mag) z + b_mag, 0) where z + b_gate > 0, else 0; all [F], z without a bias of its own."""

    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def columns(self, n_features: int) -> Columns:
        # exp in double: half precision would round the slope before the table does
        return _row_form(threshold=-self.b_gate, slope=self.r_mag.double().exp(), shift=self.b_mag)


@dataclass(frozen=True, eq=False)
class Slots(Activation):
    """The last n features linear (concept slots of AlignSAE, 2512.02004), all before them as ``rest``."""

    n: int
    rest: Activation

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 0:
            raise ValueError(f"Slots: n should be a whole number from 0, got {self.n!r}")
        if not isinstance(self.rest, Activation) or isinstance(self.rest, TopK | Slots):
            raise ValueError(f"Slots: rest should be an elementwise activation, got {self.rest!r}")

    def check(self, n_features: int) -> None:
        if self.n > n_features:
            raise ValueError(f"Slots: n should be at most the number of features, {n_features}, got {self.n}")
        self.rest.check(n_features)

    def columns(self, n_features: int) -> Columns:
        linear = Identity().columns(n_features)
        joined: Columns = {}
        for column, value in self.rest.columns(n_features).items():
            values = torch.as_tensor(value, dtype=torch.float64).expand(n_features).clone()
            values[n_features - self.n :] = linear[column]
            joined[column] = values
        return joined


def check_activation(activation: object, n_features: int) -> None:
    """Raise TypeError for what is no activation, ValueError unless it fits ``n_features``."""
    if not isinstance(activation, Activation):
        raise TypeError(f"SAE: activation should be ss.ReLU(), ss.TopK(k), ..., got {activation!r}")
    activation.check(n_features)
