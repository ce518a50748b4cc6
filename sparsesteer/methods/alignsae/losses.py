"""The losses of AlignSAE (arXiv 2512.02004), each a number; letters: B states, D width, R concepts, F free features."""

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-12


def reconstruction(rebuilt: Tensor, h: Tensor) -> Tensor:
    """Mean squared error of [B, D]."""
    return functional.mse_loss(rebuilt, h)


def sparsity(free: Tensor) -> Tensor:
    """Mean absolute activation of the free features [B, F]."""
    return free.abs().mean()


def binding(slots: Tensor, labels: Tensor, kind: str = "mse") -> Tensor:
    """How far the slots [B, R] are from saying the concept [B].

    "mse": mean squared error with the one-hot concept. "ce": cross-entropy of their softmax.
    """
    if kind == "ce":
        return functional.cross_entropy(slots, labels)
    return functional.mse_loss(slots, functional.one_hot(labels, slots.shape[1]).to(slots))


def orthogonality(slots: Tensor, free: Tensor, kind: str = "covariance") -> Tensor:
    """Sum over slots and free features of their squared covariance in the batch, or of their squared correlation.

    One product [R, B] x [B, F]: nothing of R x F x B. Covariances divide by B, as in the released code.
    """
    slots, free = _centred(slots), _centred(free)
    if kind == "correlation":
        slots, free = (each / each.pow(2).mean(0).clamp(min=_TINY).sqrt() for each in (slots, free))
    return (slots.T @ free / len(free)).pow(2).sum()


def independence(free: Tensor) -> Tensor:
    """Sum over pairs of different free features of their squared covariance in the batch.

    The released code forms the covariances [F, F] and gives up beyond 10,000 features. Their squares sum to those of
    the B x B products of the centred activations, so that here it takes B B F steps and exists for any F.
    """
    centred = _centred(free)
    every = (centred @ centred.T / len(free)).pow(2).sum()
    return every - centred.pow(2).mean(0).pow(2).sum()


def invariance(slots: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance of the slots [B, R] from the batch's mean of their concept: wordings should not matter."""
    one_hot = functional.one_hot(labels, slots.shape[1]).to(slots)
    means = one_hot.T @ slots / one_hot.sum(0).clamp(min=1)[:, None]
    return functional.mse_loss(slots, means[labels])


def _centred(codes: Tensor) -> Tensor:
    return codes - codes.mean(0)


def check_finite(found: dict[str, Tensor]) -> str | None:
    """The name of a loss that is NaN or infinite, if there is one."""
    return next((name for name, loss in found.items() if not torch.isfinite(loss)), None)
