"""``steer`` and what it is compared with, all setting M features of a JumpReLU SAE to one value.

Random weights: the time does not depend on them, since an edit that sets a value changes every token.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import util

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsesteer as ss
from sparsesteer import ops
from sparsesteer._layout import Column
from sparsesteer.plans import SteeringPlan

VALUE = 3.0
BIAS, THRESHOLD = -0.5, 0.4

OURS = "sparsesteer"
GATHERED = "gathered torch"
COMPILED = "gathered torch, compiled"
ENCODE_ALL = "encode all, add the difference"
SAELENS_ARITHMETIC = "SAELens's arithmetic"
SAELENS_CLASS = "SAELens's class, error term"

Transform = Callable[[Tensor], Tensor]  # h [N, D] -> steered h [N, D]


@dataclass(frozen=True)
class Weights:
    """Encoder and decoder rows [P, D] of an SAE of F <= P features, the rest more rows for cold plans."""

    encoder: Tensor
    decoder: Tensor
    n_features: int

    @classmethod
    def random(cls, width: int, n_features: int, least_bytes: int, device: str, dtype: torch.dtype) -> "Weights":
        """Both matrices together take at least ``least_bytes``."""
        row_bytes = 2 * width * dtype.itemsize
        n_rows = max(n_features, -(-least_bytes // row_bytes))
        generator = torch.Generator(device).manual_seed(0)
        encoder, decoder = (
            torch.randn(n_rows, width, generator=generator, device=device).div_(width**0.5).to(dtype) for _ in range(2)
        )
        return cls(encoder, decoder, n_features)

    @property
    def n_bytes(self) -> int:
        """Of both matrices."""
        return self.encoder.nbytes + self.decoder.nbytes

    def plans(self, m: int, n_plans: int) -> list[SteeringPlan]:
        """Plans of M = ``m`` features, each of its own rows; no more than there are rows for."""
        device = self.encoder.device
        sae = ss.SAE(
            W_enc=self.encoder[:m].float().T,
            W_dec=self.decoder[:m].float(),
            b_enc=torch.full((m,), BIAS, device=device),
            activation=ss.JumpReLU(torch.full((m,), THRESHOLD, device=device)),
        )
        first = sae.plan(ss.Edit.set(dict.fromkeys(range(m), VALUE)))
        starts = range(0, min(n_plans, len(self.encoder) // m) * m, m)
        return [
            replace(first, encoder=self.encoder[start : start + m], decoder=self.decoder[start : start + m])
            for start in starts
        ]


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
    bias = torch.full((weights.n_features,), BIAS, device=encoder.device, dtype=encoder.dtype)

    def activations(x: Tensor) -> Tensor:
        z = F.linear(x, encoder, bias)
        return (z > THRESHOLD).mul(z)

    return activations


def saelens_class(weights: Weights, m: int) -> Transform:
    """SAELens's own class, edited at its hook point. Raises ImportError where sae_lens is not installed."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    n_features, width = weights.n_features, weights.encoder.shape[1]
    device = weights.encoder.device
    lens = JumpReLUSAE(JumpReLUSAEConfig(d_in=width, d_sae=n_features, device=str(device), apply_b_dec_to_input=True))
    lens.load_state_dict(
        {
            "W_enc": weights.encoder[:n_features].float().T.contiguous(),
            "W_dec": weights.decoder[:n_features].float(),
            "b_enc": torch.full((n_features,), BIAS),
            "b_dec": torch.zeros(width),
            "threshold": torch.full((n_features,), THRESHOLD),
        }
    )
    lens.use_error_term = True

    def set_value(codes: Tensor, hook: object) -> Tensor:
        codes[:, :m] = VALUE
        return codes

    lens.add_hook("hook_sae_acts_post", set_value)
    return lambda h: lens(h.float()).to(h.dtype)


def left_out(competitor: str, device: str) -> str:
    """Why a competitor cannot take part here; empty if it can."""
    if competitor == SAELENS_CLASS and util.find_spec("sae_lens") is None:
        return "sae_lens is not installed; pip install sparsesteer[lens]"
    if competitor == COMPILED and device == "cuda" and util.find_spec("triton") is None:
        return "torch.compile needs triton on CUDA devices"
    return ""
