"""Steers five tokens with the sparsesteer installed beside this Python: python -c "$(cat steer_once.py)" BACKEND.

Compares the edit with its formula, and with the reference in double precision. BACKEND "auto" must not fail either.
"""

import sys
from pathlib import Path

import torch

import sparsesteer as ss

assert Path(ss.__file__).is_relative_to(sys.prefix), ss.__file__
backend = sys.argv[1]
torch.manual_seed(0)
h, W_enc, W_dec = torch.randn(5, 24), torch.randn(24, 80), torch.randn(80, 24)
edit = ss.Edit.set({3: 2.0}) | ss.Edit.ablate([7])


def change(dtype: torch.dtype, activation: ss.ReLU | ss.TopK, backend: str) -> torch.Tensor:
    """What the edit adds to the hidden states."""
    sae = ss.SAE(W_enc=W_enc.to(dtype), W_dec=W_dec.to(dtype), activation=activation)
    return ss.ops.steer(h.to(dtype), sae.plan(edit), backend=backend) - h.to(dtype)


f = (h @ W_enc).relu()
by_formula = (2 - f[:, 3:4]) * W_dec[3] - f[:, 7:8] * W_dec[7]
torch.testing.assert_close(change(torch.float32, ss.ReLU(), backend), by_formula, rtol=1e-5, atol=1e-5)
for activation in (ss.ReLU(), ss.TopK(20)):
    truth = change(torch.float64, activation, "reference")
    error = (change(torch.float32, activation, backend) - truth).norm() / truth.norm()
    assert error < 1e-5, f"{backend}, {activation}: the edit is off by {error:.1e} of its norm"
