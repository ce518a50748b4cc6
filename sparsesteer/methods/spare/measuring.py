"""From states to the statistics of all features, a band of features at a time: nothing n x F."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsesteer import reference, weights
from sparsesteer.lowering import fold_encoder
from sparsesteer.methods.code_blocks import in_blocks
from sparsesteer.methods.information import RandomState, mutual_information
from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY
from sparsesteer.methods.spare.statistics import FeatureStatistics, steered_activation
from sparsesteer.sae import SAE

BLOCK = 1024  # features that share the noise of "knn"
BAND_BYTES = 64 << 20  # of codes that are there at a time


@dataclass(frozen=True)
class Estimate:
    """How mutual information is estimated; see ``ss.mutual_information``."""

    estimator: str = "knn"
    n_neighbors: int = 3
    random_state: RandomState = 0

    def __call__(self, codes: Tensor, labels: Tensor) -> Tensor:
        """[M] of codes [n, M]."""
        return mutual_information(codes, labels, self.estimator, self.n_neighbors, self.random_state, BLOCK)


def measured(
    sae: SAE,
    states: Tensor,  # [n, D]
    labels: Tensor,  # [n], CONTEXT or MEMORY
    sample_weights: tuple[Tensor, Tensor],  # fp64 [n] for the means of context and of memory, sums 1
    estimate: Estimate,
    tracked: Callable[[list[tuple[int, int]]], Iterable[tuple[int, int]]] = iter,
) -> FeatureStatistics:
    """The statistics of all F features. Raises ValueError for codes that are NaN or infinite."""
    plain = plain_weights(labels)
    means = torch.stack([*sample_weights, plain[0] - plain[1]], -1).to(sae.device)  # [n, 3]
    x = reference.read_input(states.to(sae.device), None)
    mi = torch.empty(sae.d_sae, dtype=torch.float64)
    found = torch.empty(sae.d_sae, 3, dtype=torch.float64)
    width = max(1, BAND_BYTES // (4 * max(1, len(x)) * BLOCK)) * BLOCK
    bands = list(in_blocks(sae.d_sae, width))
    for first, end in tracked(bands):
        codes = codes_of(sae, x, first, end)
        mi[first:end] = estimate(codes, labels)
        for start, stop in in_blocks(end - first, BLOCK):
            found[first + start : first + stop] = (codes[:, start:stop].T.double() @ means).cpu()
    context, memory, difference = found.float().unbind(-1)
    return FeatureStatistics.checked(sae, mi, context, memory, difference)


def codes_of(sae: SAE, x: Tensor, first: int, end: int) -> Tensor:
    """Activations [n, end - first] of x [n, D], without TopK's mask. Raises ValueError for what is NaN or infinite."""
    features = torch.arange(first, end, device=sae.device)
    columns = weights.columns(sae.W_enc, features)
    weights.check_finite_rows("W_enc", sae.W_enc, columns, features)
    encoder, bias = fold_encoder(sae, columns, features)
    table = steered_activation(sae).table(features, bias, sae.d_sae)
    codes = reference.activations(x, None, encoder, table, int(sae.input_norm))
    finite = torch.isfinite(codes).all(0) & torch.isfinite(bias)  # no feature is active by a bias that is NaN
    if not finite.all():
        raise ValueError(f"SPARE: the codes of feature {first + int((~finite).nonzero()[0])} are NaN or infinite")
    return codes


def plain_weights(labels: Tensor) -> tuple[Tensor, Tensor]:
    """fp64 [n] for plain means over context and over memory."""
    context, memory = ((labels == side).double() for side in (CONTEXT, MEMORY))
    return context / context.sum(), memory / memory.sum()


def confidence_weights(labels: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """fp64 [n] for means in which surer answers count more, as in the authors' program (the paper's ratio is inverse).

    Args:
        losses: [n, 2], of the text with the substituted and with the original answer.
    """
    total = losses.sum(-1)
    shares = torch.where(labels == CONTEXT, losses[:, 1], losses[:, 0]) / total
    context, memory = (torch.where(labels == side, shares, 0.0) for side in (CONTEXT, MEMORY))
    return context / context.sum(), memory / memory.sum()
