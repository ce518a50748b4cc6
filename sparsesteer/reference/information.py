"""Mutual information of continuous columns with discrete labels, by nearest neighbours: the definition."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

NOISE = 1e-10  # of a column whose mean size is 1
_CONSTANT = 10 * torch.finfo(torch.float64).eps  # a standard deviation that is none


def mutual_information(
    columns: Tensor,  # [F, n]
    labels: Tensor,  # int32 [n], -1 for samples that are left out
    noise: Tensor,  # fp64 [W, n]
    order: Tensor,  # int32 [W, n], sorts the noise; kernels save time by it
    noise_rows: Tensor,  # int64 [F], the row of the noise that each column takes
    n_neighbors: int,
) -> Tensor:
    """[F] in nats, at least 0 (Ross 2014, doi:10.1371/journal.pone.0087357, equation 2).

    Of n samples, where a sample's class has c of them and the distance to the k-th neighbour within it is closer than
    that of m samples, itself counted: psi(n) + mean psi(k) - mean psi(c) - mean psi(m).
    """
    x = columns.double()
    deviation = x.std(-1, correction=0, keepdim=True)
    x = torch.where(deviation >= _CONSTANT, x / deviation, x)
    x = x + NOISE * x.abs().mean(-1, keepdim=True).clamp(min=1) * noise[noise_rows]
    counted = labels >= 0
    x, labels = x[:, counted], labels[counted]
    n = len(labels)
    if n == 0:
        return x.new_zeros(len(x))
    everything = x.sort(-1).values
    of_counts, of_neighbours = 0.0, x.new_zeros(len(x))
    for label in labels.unique():
        of_class = x[:, labels == label].sort(-1).values
        count = of_class.shape[1]
        k = min(n_neighbors, count - 1)
        within = _within(everything, of_class, _radii(of_class, k))
        of_neighbours += torch.digamma(within.double()).sum(-1)
        of_counts += count * (_digamma(k) - _digamma(count))
    return (_digamma(n) + (of_counts - of_neighbours) / n).clamp(min=0)


def _digamma(n: int) -> float:
    return float(torch.digamma(torch.tensor(float(n), dtype=torch.float64)))


def _radii(v: Tensor, k: int) -> Tensor:
    """Just below the distance to the k-th neighbour, of rising values v [F, c]."""
    distances = torch.full_like(v, math.inf)
    starts = v.shape[1] - k
    for before in range(k + 1):  # neighbours below; the others are above
        here = slice(before, before + starts)
        reach = torch.maximum(v[:, here] - v[:, :starts], v[:, k:] - v[:, here])
        distances[:, here] = torch.minimum(distances[:, here], reach)
    return torch.nextafter(distances, torch.zeros_like(distances))


def _within(everything: Tensor, v: Tensor, radii: Tensor) -> Tensor:
    """How many of ``everything`` [F, n], which rises, are no further than ``radii`` [F, c] from v [F, c]."""
    first = _first_where(lambda e: v - e <= radii, everything, torch.searchsorted(everything, v - radii))
    end = _first_where(lambda e: e - v > radii, everything, torch.searchsorted(everything, v + radii, right=True))
    return end - first


def _first_where(holds: Callable[[Tensor], Tensor], everything: Tensor, guess: Tensor) -> Tensor:
    """The first place in each row of ``everything`` [F, n] where a condition holds from there on; n for none.

    The guess came of rounded sums, the condition is about rounded differences: it may be a place or two off.
    """
    n = everything.shape[1]
    while True:
        before = (guess > 0) & holds(everything.gather(1, (guess - 1).clamp(min=0)))
        after = (guess < n) & ~holds(everything.gather(1, guess.clamp(max=n - 1)))
        if not (before | after).any():
            return guess
        guess = guess - before.long() + after.long()
