"""A small SAE of each kind, for tests of what users call."""

import torch

import sparsesteer as ss
from sparsesteer import SAE

D, F = 48, 200


def make_sae(activation=None, *, dtype=torch.float32, whole=False, **options):
    """Random weights; whole numbers if asked for, which make ties and exact sums."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        if whole:
            return torch.randint(-2, 3, shape, generator=generator).to(dtype)
        return torch.randn(*shape, generator=generator).to(dtype)

    scale = 1.0 if whole else D**-0.5
    given = {
        "W_enc": numbers(D, F) * scale,
        "W_dec": numbers(F, D) * scale,
        "b_enc": None if isinstance(activation, ss.Gated) else numbers(F) * (1.0 if whole else 0.1),
        "b_dec": numbers(D) * (1.0 if whole else 0.1),
    }
    return SAE(**given, activation=activation or ss.JumpReLU(threshold=torch.full((F,), 0.2)), **options)


def every_activation():
    """One of each kind, by name."""
    generator = torch.Generator().manual_seed(7)

    def normal():
        return torch.randn(F, generator=generator)

    return {
        "relu": ss.ReLU(),
        "jumprelu": ss.JumpReLU(threshold=normal().abs()),
        "topk": ss.TopK(7),
        "gated": ss.Gated(b_gate=normal() - 1, b_mag=normal() * 0.1, r_mag=normal() * 0.1),
        "identity": ss.Identity(),
        "slots": ss.Slots(5, rest=ss.JumpReLU(threshold=normal().abs())),
    }


def hidden(n=5, dtype=torch.float32, seed=1):
    """h [n, D]."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).to(dtype)
