"""States in which concepts can be told apart, and a tiny model to collect some from."""

import torch

from sparsesteer.methods.alignsae import LossWeights, Recipe
from sparsesteer.methods.alignsae.states import States

WIDTH, CONCEPTS = 8, ("date", "city", "school")
SMALL = Recipe(
    n_free=20,
    stage_one=2,
    stage_two=10,
    batch_size=16,
    learning_rate=1e-2,
    hidden=4,
    weights=LossWeights(binding=10.0),
)


def states(per_concept=24, seed=0, n_concepts=3):
    """Around one centre for each concept; answers begin with one of two tokens."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_concepts, WIDTH, generator=torch.Generator().manual_seed(9)) * 2
    labels = torch.arange(n_concepts).repeat(per_concept)
    h = centres[labels] + torch.randn(len(labels), WIDTH, generator=generator)
    return States.of(h, labels, torch.where(h[:, 0] > 0, 5, 11))


def in_parts(whole, size):
    """The same states, a part of ``size`` rows after the other."""
    (everything,) = whole.in_order()
    slices = [slice(first, first + size) for first in range(0, len(whole), size)]
    parts = tuple((lambda rows=rows: everything[rows]) for rows in slices)
    return States(whole.width, whole.labels, whole.tokens, parts)
