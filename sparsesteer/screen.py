"""An int8 copy of an encoder that tells which features of a token need an exact look."""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 128  # columns that share a step
_BAND_NUMBERS = 1 << 22
_LARGEST_NORM = 1e15
_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Screen:
    """Codes q and steps s with E ~ s q, and for every row a proven bound on what they miss.

    For a token x with 1e-15 < ||x|| < 1e15, every feature i, and any order of summation in fp32,

        |fl(E_i . x) - fl(sum_g s_ig fl(q_ig . x_g))| <= error_i ||x||,

    with ||x|| as computed in fp32. Proof, with r = ||E_i - s_i q_i|| (in fp64), u = 2^-24, m = D + ceil(D / 128) + 8
    and g = m u / (1 - m u), the usual bound on m roundings in a row:

    - exactly, |E_i . x - (s q)_i . x| <= r ||x|| (Cauchy-Schwarz);
    - the sum over E_i is off by at most g ||E_i|| ||x||, that over s q by g (||E_i|| + r) ||x||: every term passes
      fewer than m roundings, and a sum of |terms| is at most a product of norms;
    - adding the bound to the screened sum rounds once more, by u (||E_i|| + r) ||x|| and a part of the bound itself;
    - the norm of x, the product of bound and norm, and storing the bound in fp32 lose a factor of less than 1 + 4 g.

    So error = (r + 3 g (||E_i|| + r)) (1 + 4 g) + 1e-25, where the last term covers all that underflows. Rows whose
    norm is above 1e15 or not finite get an infinite error: they are always looked at.
    """

    codes: Tensor  # int8 [F, D]
    scale: Tensor  # fp32 [F, ceil(D / 128)], the step of each group of columns
    error: Tensor  # fp32 [F]

    @classmethod
    def of(cls, encoder: Tensor) -> "Screen":
        """The screen of encoder rows [F, D], fp32 or bf16. Its memory is a quarter of the fp32 rows'.

        Raises:
            TypeError: another dtype, for whose rounding the bound does not hold.
        """
        if encoder.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"Screen.of: the encoder should be fp32 or bf16, got {encoder.dtype}")
        rows, width = encoder.shape
        codes = torch.empty(rows, width, dtype=torch.int8, device=encoder.device)
        scale = torch.empty(rows, -(-width // GROUP), device=encoder.device)
        error = torch.empty(rows, device=encoder.device)
        band = max(1, _BAND_NUMBERS // max(1, width))
        for first in range(0, rows, band):
            part = slice(first, first + band)
            codes[part], scale[part], error[part] = _quantised(encoder[part])
        return cls(codes, scale, error)


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, steps and error bounds of a band of rows."""
    width = rows.shape[1]
    exact = rows.double()
    length = exact.norm(dim=-1)
    usable = length <= _LARGEST_NORM  # False for NaN
    grouped = torch.nn.functional.pad(exact, (0, -width % GROUP)).unflatten(-1, (-1, GROUP))
    grouped = torch.where(usable[:, None, None], grouped, torch.zeros_like(grouped))
    step = (grouped.abs().amax(-1) / 127).float()
    wide_step = step.double()[..., None]
    codes = torch.where(wide_step > 0, grouped / wide_step, torch.zeros_like(grouped)).round().clamp(-127, 127)
    missed = (grouped - codes * wide_step).flatten(-2).norm(dim=-1)
    roundings = width + step.shape[1] + 8
    growth = roundings * _UNIT_ROUNDOFF / (1 - roundings * _UNIT_ROUNDOFF)
    error = (missed + 3 * growth * (length + missed)) * (1 + 4 * growth) + 1e-25
    error = torch.where(usable, error, torch.full_like(error, torch.inf))
    return codes.flatten(-2)[:, :width].to(torch.int8), step, error.float()
