"""Recordings with given numbers, without a model."""

import torch

from sparsesteer.recording.recording import Entries, Recording
from sparsesteer.recording.watched import WatchedFeature

SITE = "blocks.1.hook_resid_post"


def recording(texts=("The", " ship", " left", "."), n_features=2, *, n_generated=1, steered=True, number=0, into=None):
    """One sequence of the texts, added to another recording if given; activations count up from 0."""
    n = len(texts)
    before = torch.arange(n * n_features, dtype=torch.float32).view(n, n_features) / 4
    after = before * 2 if steered else before.clone()
    entries = Entries(
        tokens=torch.arange(10, 10 + n),
        sequences=torch.full((n,), number),
        positions=torch.arange(n),
        generated=torch.arange(n) >= n - n_generated,
        before=before,
        after=after,
    )
    known = [] if into is None else list(into.texts)
    features = [WatchedFeature(SITE, 12 + 87 * i) for i in range(n_features)]
    made = Recording(features, texts=[*known, *texts])
    if into is not None:
        made.add(into.entries, len(into))
    made.add(entries, n)
    return made
