"""What is trained: an encoder and a decoder with concept slots behind the free features, and a value head a slot."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsesteer import weights
from sparsesteer.activations import Activation, Identity, JumpReLU, ReLU, Slots, TopK
from sparsesteer.lowering import fold_encoder
from sparsesteer.methods.alignsae.recipe import Recipe
from sparsesteer.sae import SAE
from sparsesteer.site import Site

_THRESHOLD_MEMORY = 0.99  # of the running mean


@dataclass(frozen=True)
class Codes:
    """Activations of the free features [B, F], values of the slots [B, R], and what both are decoded to [B, D]."""

    free: Tensor
    slots: Tensor
    rebuilt: Tensor


class ValueHeads(nn.Module):
    """For each slot an MLP from its one number to the answer's first token, 1 -> hidden -> ReLU -> V.

    The published heads range over the whole vocabulary, these over the V tokens that answers of the data begin with.
    """

    tokens: Tensor

    def __init__(self, n_concepts: int, tokens: Tensor, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("tokens", tokens)  # int64 [V], rising

        def uniform(fan_in: int, *shape: int) -> nn.Parameter:
            bound = 1 / math.sqrt(fan_in)
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))

        self.inner, self.inner_bias = uniform(1, n_concepts, hidden), uniform(1, n_concepts, hidden)
        self.outer = uniform(hidden, n_concepts, hidden, len(tokens))
        self.outer_bias = uniform(hidden, n_concepts, len(tokens))

    def forward(self, values: Tensor, concept: int) -> Tensor:
        """Logits [B, V] of the values [B] of one concept's slot."""
        hidden = functional.relu(values[:, None] * self.inner[concept] + self.inner_bias[concept])
        return hidden @ self.outer[concept] + self.outer_bias[concept]

    def loss(self, slots: Tensor, labels: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy of each answer's first token, an index into ``tokens`` [B], by the head of its concept."""
        total = slots.new_zeros(())
        for concept in labels.unique().tolist():
            some = labels == concept
            logits = self(slots[some, concept], concept)
            total = total + functional.cross_entropy(logits, answers[some], reduction="sum")
        return total / len(labels)


class Network(nn.Module):
    """z = h W_enc + b_enc; the last R of z are the slots, linear; h ~ act(z) W_dec + b_dec."""

    scale: Tensor
    threshold: Tensor

    def __init__(self, d_in: int, n_concepts: int, free: Activation, recipe: Recipe, n_free: int) -> None:
        super().__init__()
        n_features = n_free + n_concepts
        self.n_concepts, self.n_free, self.activation = n_concepts, n_free, free
        self.W_enc = nn.Parameter(torch.empty(d_in, n_features))
        self.b_enc = nn.Parameter(torch.zeros(n_features))
        self.W_dec = nn.Parameter(torch.empty(n_features, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))  # of the states; 1 / scale of them is encoded
        self.register_buffer("threshold", torch.zeros(()))  # of TopK, as JumpReLU
        self.heads: ValueHeads | None = None

    @classmethod
    def begun(
        cls, d_in: int, n_concepts: int, scale: float, tokens: Tensor | None, base: SAE | None, recipe: Recipe
    ) -> "Network":
        """New weights out of the recipe's seed; those of a base SAE, with new slots behind, where one is given."""
        generator = torch.Generator().manual_seed(recipe.seed)
        free = _free_activation(recipe) if base is None else _kept_activation(base, d_in)
        n_free = recipe.n_free if base is None else base.d_sae
        network = cls(d_in, n_concepts, free, recipe, n_free)
        with torch.no_grad():
            bound = 1 / math.sqrt(d_in)
            network.W_enc.uniform_(-bound, bound, generator=generator)
            if base is None:
                network.W_dec.copy_(_right_inverse(network.W_enc))
            else:
                features = torch.arange(base.d_sae)
                rows, bias = fold_encoder(base, weights.columns(base.W_enc, features), features)
                network.W_enc[:, :n_free], network.b_enc[:n_free] = rows.T * scale, bias
                network.W_dec[:n_free] = weights.whole("W_dec", base.W_dec).float() / scale
                network.W_dec[n_free:] = 0
                network.b_dec.copy_(base.b_dec / scale)
            network.scale.fill_(scale)
        if tokens is not None:
            network.heads = ValueHeads(n_concepts, tokens, recipe.hidden, generator)
        return network

    def forward(self, h: Tensor) -> Codes:
        """Of states [B, D] in units of ``scale``."""
        z = h @ self.W_enc + self.b_enc
        free, slots = self._activated(z[:, : self.n_free]), z[:, self.n_free :]
        return Codes(free, slots, torch.cat([free, slots], -1) @ self.W_dec + self.b_dec)

    def _activated(self, z: Tensor) -> Tensor:
        if isinstance(self.activation, Identity):
            return z
        if isinstance(self.activation, TopK):
            return self._largest(z, self.activation.k)
        if isinstance(self.activation, JumpReLU):
            threshold = torch.as_tensor(self.activation.threshold, device=z.device)
            return torch.where(z > threshold, functional.relu(z), 0.0)
        return functional.relu(z)

    def _largest(self, z: Tensor, k: int) -> Tensor:
        kept = functional.relu(z).topk(min(k, self.n_free), dim=-1)
        if self.training:
            smallest = kept.values[:, -1].detach().float().mean()
            memory = _THRESHOLD_MEMORY if self.threshold else 0.0
            self.threshold.lerp_(smallest, 1 - memory)
        return torch.zeros_like(z).scatter(-1, kept.indices, kept.values)

    def sae(self, site: Site) -> SAE:
        """The weights as an SAE of the states themselves, copied; its activation is ``Slots``."""
        scale, rest = self.scale.detach(), self._saved_activation()
        return SAE(
            W_enc=(self.W_enc.detach() / scale).clone(),
            W_dec=(self.W_dec.detach() * scale).clone(),
            b_enc=self.b_enc.detach().clone(),
            b_dec=(self.b_dec.detach() * scale).clone(),
            activation=Slots(self.n_concepts, rest=rest) if self.n_concepts else rest,
            apply_b_dec_to_input=False,
            site=site,
        )

    def _saved_activation(self) -> Activation:
        if isinstance(self.activation, TopK):
            return JumpReLU(self.threshold.detach().expand(self.n_free + self.n_concepts).clone())
        if isinstance(self.activation, JumpReLU):
            own = torch.as_tensor(self.activation.threshold, dtype=torch.float32).expand(self.n_free)
            return JumpReLU(functional.pad(own, (0, self.n_concepts)))
        return self.activation


def _right_inverse(encoder: Tensor) -> Tensor:
    """[F, D] that decodes what an encoder [D, F] encodes: the start that the paper's appendix names.

    The released code starts from the transpose, which is too large by about F / 3D.
    """
    if encoder.shape[1] < 2 * encoder.shape[0]:
        return torch.linalg.pinv(encoder)
    return torch.linalg.solve(encoder @ encoder.T, encoder).T


def _free_activation(recipe: Recipe) -> Activation:
    return {"identity": Identity(), "relu": ReLU(), "topk": TopK(recipe.k)}[recipe.free]


def _kept_activation(base: SAE, d_in: int) -> Activation:
    """Raises ValueError for an SAE that slots cannot be added to."""
    if base.d_in != d_in or base.transcoder:
        raise ValueError(f"AlignSAE: the states have width {d_in}, the SAE to start from reads {base.d_in}")
    if base.normalize != "none" or base.W_skip is not None:
        raise ValueError("AlignSAE: an SAE to start from has no normalisation of its own and no skip connection")
    if base.rescale_acts_by_decoder_norm:
        raise ValueError("AlignSAE: fold the decoder norms of the SAE to start from into its weights first")
    if not isinstance(base.activation, Identity | ReLU | TopK | JumpReLU):
        raise ValueError(
            "AlignSAE: an SAE to start from is of ReLU, JumpReLU, TopK or Identity, "
            f"not {type(base.activation).__name__}"
        )
    return base.activation
