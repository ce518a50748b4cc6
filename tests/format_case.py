"""One SAE on disk in one format, and what the library that owns the format makes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsesteer import Site

D, F, D_OUT = 24, 96, 40


@dataclass
class Case:
    """``encode`` and ``decode`` are the owner's, in fp64; decode(f, h) has no skip connection, ``skip`` is that."""

    path: Path
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    site: Site
    skip: Callable[[Tensor], Tensor] | None = None
    given: dict[str, Any] = field(default_factory=dict)
    d_out: int = D

    @torch.no_grad()
    def sure(self, h: Tensor) -> Tensor:
        """[N, F] where changes of the input in its sixth digit turn no feature on or off."""
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(6, *h.shape, generator=generator, dtype=h.dtype) * 5e-6
        fires = torch.stack([self.encode(h + each) > 0 for each in noise])
        return (fires == (self.encode(h) > 0)).all(0)


def weights(seed=0, d=D, f=F, d_out=None):
    """Random fp32 weights by SAELens's names, under which about a third of the features fire."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale):
        return torch.randn(*shape, generator=generator) * scale

    d_out = d if d_out is None else d_out
    return {
        "W_enc": normal(d, f, scale=d**-0.5),
        "W_dec": normal(f, d_out, scale=d_out**-0.5),
        "b_enc": normal(f, scale=0.3),
        "b_dec": normal(d_out, scale=0.3),
        "threshold": normal(f, scale=0.5).abs(),
    }


def inputs(n=512, d=D, seed=7):
    """h [n, d] in fp64, of fp32 values."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double() * 1.5 + 0.1


def lens_case(path, lens, site, **more):
    """A case whose owner is a SAELens object."""
    skip = (lambda h: h @ lens.W_skip.T) if hasattr(lens, "W_skip") else None
    return Case(path, lens.encode, lens.decode, site, skip, **more)
