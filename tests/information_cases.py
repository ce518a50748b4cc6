"""Codes and labels for tests of mutual information, and the estimate written out sample by sample."""

import numpy as np
import torch
from scipy.special import digamma


def labels(n=120, n_classes=2, seed=3):
    """[n], every class several times."""
    return np.random.RandomState(seed).randint(0, n_classes, n)


def codes(kind, n=120, f=20, seed=0):
    """[n, f] fp64."""
    random = np.random.RandomState(seed)
    values = np.abs(random.standard_normal((n, f))) + 0.7 * labels(n)[:, None] * (np.arange(f) % 3 == 0)
    sparse = np.where(random.random_sample((n, f)) < 0.85, 0.0, values)
    return {
        "dense": random.standard_normal((n, f)) + labels(n)[:, None] * 0.5,
        "sparse": sparse,
        "of few values": np.round(2 * sparse) / 2,  # ties of distances everywhere
        "bfloat16": torch.from_numpy(sparse).bfloat16().double().numpy(),
        "dead": np.where(np.arange(f) % 4 == 0, sparse, 0.0),
        "constant": np.full((n, f), 0.3),
        "nearly constant": 1e-12 * values,
        "negative": -sparse,
        "all different sizes": sparse * np.logspace(-12, 6, f),
    }[kind]


KINDS = (
    "dense", "sparse", "of few values", "bfloat16", "dead", "constant", "nearly constant", "negative",
    "all different sizes",
)  # fmt: skip


def by_loops(codes, labels, n_neighbors=3, seed=0):
    """[F] of one block: the estimate of Ross, with the noise and scaling of scikit-learn."""
    n, f = codes.shape
    noise = np.random.RandomState(seed).standard_normal((n, f))
    found = []
    for j in range(f):
        x = np.asfortranarray(codes)[:, j].astype(np.float64)
        deviation = np.sqrt(((x - x.mean()) ** 2).mean())
        x = x / deviation if deviation >= 10 * np.finfo(float).eps else x
        x = x + 1e-10 * max(1.0, np.abs(x).mean()) * noise[:, j]
        found.append(_ross(x, labels, n_neighbors))
    return np.array(found)


def _ross(x, labels, n_neighbors):
    classes, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, classes[counts > 1])
    x, labels = x[kept], labels[kept]
    terms = []
    for i in range(len(x)):
        distances = np.abs(x - x[i])
        own = np.delete(distances, i)[np.delete(labels, i) == labels[i]]
        k = min(n_neighbors, len(own))
        radius = np.nextafter(np.sort(own)[k - 1], 0)
        within = (distances <= radius).sum()
        terms.append(digamma(k) - digamma(len(own) + 1) - digamma(within))
    return max(0.0, digamma(len(x)) + np.mean(terms))
