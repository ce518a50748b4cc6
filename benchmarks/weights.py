"""Random SAEs. Times do not depend on the weights, but on how many features are active: that is set exactly."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import sparsesteer as ss
from sparsesteer.plans import SteeringPlan

VALUE = 3.0  # what edited features are set to: an edit that changes every token
BIAS, THRESHOLD = -0.5, 0.4


@dataclass(frozen=True)
class Weights:
    """Encoder and decoder rows [P, D] of an SAE of F <= P features, the rest more rows for cold plans.

    Every encoder bias is ``BIAS``; a pre-activation of a normal token has that mean and variance 1.
    """

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

    @property
    def bias(self) -> Tensor:
        """[F], in the dtype of the rows."""
        return self.encoder.new_full((self.n_features,), BIAS)

    @property
    def decoder_bias(self) -> Tensor:
        """[D], zeros in the dtype of the rows, which everybody adds all the same."""
        return self.decoder.new_zeros(self.decoder.shape[1])

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

    def sae(self, activation: str, k: int) -> ss.SAE:
        """All F features, which share these rows: K = ``k`` of them active on a token, or on average.

        Its row tables are there already, so that no first call makes them.
        """
        rows = slice(self.n_features)
        sae = ss.SAE(
            W_enc=self.encoder[rows].T,
            W_dec=self.decoder[rows],
            b_enc=self.bias.float(),
            activation=ss.TopK(k) if activation == "topk" else ss.JumpReLU(self.threshold(k)),
        )
        sae.whole_encoder(torch.float32)
        sae.whole_decoder(torch.float32)
        return sae

    def threshold(self, k: int) -> float:
        """What K = ``k`` of F normal pre-activations exceed on average."""
        quantile = torch.tensor(1 - k / self.n_features, dtype=torch.float64)
        return BIAS + torch.special.ndtri(quantile).item()
