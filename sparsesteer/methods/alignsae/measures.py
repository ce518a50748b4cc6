"""How well slots say the concept, and how few features say it: the paper's measures, of AlignSAE and any other SAE."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer.methods.alignsae.states import States
from sparsesteer.methods.spare.measuring import codes_of
from sparsesteer.sae import SAE


@dataclass(frozen=True)
class Binding:
    """Which slot is largest where which concept is asked for.

    Attributes:
        counts: fp64 [R, R], slots in rows, concepts in columns.
    """

    counts: Tensor

    @classmethod
    def of(cls, predicted: Tensor, labels: Tensor, n_concepts: int) -> "Binding":
        """From int64 [n] each."""
        pairs = predicted * n_concepts + labels
        counts = torch.bincount(pairs, minlength=n_concepts**2)
        return cls(counts.view(n_concepts, n_concepts).double())

    @property
    def accuracy(self) -> float:
        """The share of states whose largest slot is their concept's."""
        return float(self.counts.trace() / self.counts.sum())

    @property
    def shares(self) -> Tensor:
        """[R, R], each concept's column divided by its sum."""
        return self.counts / self.counts.sum(0).clamp(min=1)

    @property
    def diagonal(self) -> float:
        """Mean over the concepts of the share that is right."""
        return float(self.shares.trace() / len(self.counts))


@dataclass(frozen=True)
class Concentration:
    """How few features respond to a concept; a value for each concept [R].

    B is the mean activation of each feature on the concept, negative ones taken as 0, divided by their sum.

    Attributes:
        effective_features: exp of the entropy of B; 1 where one feature responds alone.
        top_share: the largest of B.
    """

    effective_features: Tensor
    top_share: Tensor

    @classmethod
    def of(cls, means: Tensor) -> "Concentration":
        """From mean activations [R, F] by concept, of features that are the same ones for every SAE compared.

        The released code takes the 6 slots alone for AlignSAE and all features of the other.
        """
        shares = means.double().clamp(min=0)
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-30)
        entropy = -torch.special.xlogy(shares, shares).sum(-1)
        return cls(entropy.exp(), shares.max(-1).values)


@torch.no_grad()
def mean_codes(sae: SAE, states: States, n_concepts: int) -> Tensor:
    """fp64 [R, F], the mean activation of every feature over the states of each concept."""
    totals = torch.zeros(n_concepts, sae.d_sae, dtype=torch.float64)
    counts = torch.zeros(n_concepts, dtype=torch.float64)
    for part in states.in_order():
        codes = codes_of(sae, reference.read_input(part.h, None), 0, sae.d_sae).double()
        totals.index_add_(0, part.labels, codes)
        counts += torch.bincount(part.labels, minlength=n_concepts)
    return totals / counts.clamp(min=1)[:, None]


@torch.no_grad()
def binding_of(sae: SAE, states: States, n_concepts: int) -> Binding:
    """Of an SAE whose last R features are slots."""
    predicted = []
    for part in states.in_order():
        x = reference.read_input(part.h, None)
        predicted.append(codes_of(sae, x, sae.d_sae - n_concepts, sae.d_sae).argmax(-1))
    return Binding.of(torch.cat(predicted), states.labels, n_concepts)


@torch.no_grad()
def unexplained(sae: SAE, states: States) -> float:
    """The share of the states' variance that the SAE does not give back."""
    missed, total, count = 0.0, torch.zeros(sae.d_in, dtype=torch.float64), 0
    squares = 0.0
    for part in states.in_order():
        missed += float((part.h - sae.decode(sae.encode(part.h))).double().pow(2).sum())
        total += part.h.double().sum(0)
        squares += float(part.h.double().pow(2).sum())
        count += len(part)
    return missed / (squares - float(total.pow(2).sum()) / count)
