"""``steer`` and what it is compared with, all setting M features of a JumpReLU SAE to one value.

Random weights: the time does not depend on them, since an edit that sets a value changes every token.
"""

from collections.abc import Callable
from importlib import util

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsesteer import ops
from sparsesteer._layout import Column
from sparsesteer.benchmarks import peers
from sparsesteer.benchmarks.weights import THRESHOLD, VALUE, Weights
from sparsesteer.plans import SteeringPlan

GATHERED = "gathered torch"
COMPILED = "gathered torch, compiled"
ENCODE_ALL = "encode all, add the difference"
SAELENS_ARITHMETIC = "SAELens's arithmetic"
SAELENS_CLASS = "SAELens's class, error term"
ALL = (GATHERED, COMPILED, ENCODE_ALL, SAELENS_ARITHMETIC, SAELENS_CLASS)

Transform = Callable[[Tensor], Tensor]  # h [N, D] -> steered h [N, D]


def ours(plan: SteeringPlan) -> Transform:
    """What this package does."""
    return lambda h: ops.steer(h, plan)


def gathered(plan: SteeringPlan) -> Transform:
    """The best plain torch: the edited rows alone, two matrix products and the activation in place.

    It sets every feature to ``VALUE``, for ReLU and JumpReLU rows. Its rows, as ours, have their own dtype: for bf16 h
    and fp32 rows it computes in fp32.
    """
    encoder, decoder, dtype = plan.encoder, plan.decoder, plan.encoder.dtype
    bias = plan.rows[:, Column.BIAS].to(dtype).contiguous()
    threshold = plan.rows[:, Column.THRESHOLD].clamp(min=0).to(dtype)

    def transform(h: Tensor) -> Tensor:
        x = h.to(dtype)
        z = F.linear(x, encoder, bias)
        return torch.addmm(x, (z > threshold).mul(z).neg_().add_(VALUE), decoder).to(h.dtype)

    return transform


def compiled(plan: SteeringPlan) -> Transform:
    """``gathered`` through torch.compile."""
    return torch.compile(gathered(plan), fullgraph=True, dynamic=False)


def encode_all(weights: Weights, m: int) -> Transform:
    """Every feature encoded once, the change of all codes decoded."""
    activations, decoder = _all_activations(weights), weights.decoder[: weights.n_features]

    def transform(h: Tensor) -> Tensor:
        f = activations(h.to(decoder.dtype))
        edited = f.clone()
        edited[:, :m] = VALUE
        return torch.addmm(h.to(decoder.dtype), edited.sub_(f), decoder).to(h.dtype)

    return transform


def saelens_arithmetic(weights: Weights, m: int) -> Transform:
    """What SAELens's class computes with its error term: encode and decode everything twice."""
    activations, decoder = _all_activations(weights), weights.decoder[: weights.n_features]

    def transform(h: Tensor) -> Tensor:
        x = h.to(decoder.dtype)
        edited = activations(x)
        edited[:, :m] = VALUE
        error = x - activations(x) @ decoder
        return (edited @ decoder + error).to(h.dtype)

    return transform


def _all_activations(weights: Weights) -> Transform:
    encoder = weights.encoder[: weights.n_features]
    bias = weights.bias

    def activations(x: Tensor) -> Tensor:
        z = F.linear(x, encoder, bias)
        return (z > THRESHOLD).mul(z)

    return activations


def saelens_class(weights: Weights, m: int) -> Transform:
    """SAELens's own class, edited at its hook point. Raises ImportError where sae_lens is not installed."""
    lens = peers.set_codes(peers.saelens_jumprelu(weights, THRESHOLD, error_term=True), m)
    return lambda h: lens(h.float()).to(h.dtype)


def absent_compiler() -> str:
    """Why torch.compile cannot take part here; empty if it can."""
    missing = torch.cuda.is_available() and util.find_spec("triton") is None
    return "torch.compile needs triton on CUDA devices" if missing else ""
