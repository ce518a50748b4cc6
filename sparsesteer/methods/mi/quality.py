"""How well the words of an explanation tell where its feature fires in text that was not used to find them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsesteer.methods.evaluation.evidence import area_under_curve
from sparsesteer.methods.evaluation.scores import N_RESAMPLES

STOP_SHARE = 0.002  # tokens more frequent than this say nothing of a context


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Contexts that activate a feature, and as many that do not.

    Attributes:
        contexts: [2 n, L] token ids for each feature, the active ones first, -1 where a text ends.
        n: active ones of each feature.
    """

    contexts: dict[int, Tensor]
    n: dict[int, int]


def held_out(codes: Tensor, windows: Tensor, features: Sequence[int], most: int, around: int, seed: int = 0) -> HeldOut:
    """Contexts out of windows [w, L] of text with activations [w, L, M] of the chosen features.

    Active is a token at half of the largest activation that the feature has in this text, one for each window.
    The others are drawn at random among windows in which the feature is silent.
    """
    generator = torch.Generator().manual_seed(seed)
    contexts, counts = {}, {}
    for column, feature in enumerate(features):
        best, places = codes[:, :, column].max(1)
        chosen = (best >= 0.5 * best.max()).nonzero().flatten() if best.max() > 0 else torch.zeros(0).long()
        chosen = chosen[best[chosen].argsort(descending=True)][:most]
        silent = (best == 0).nonzero().flatten()
        silent = silent[torch.randperm(len(silent), generator=generator)][: len(chosen)]
        chosen = chosen[: len(silent)]
        if not len(chosen):
            continue
        drawn = torch.randint(1, windows.shape[1], (len(silent),), generator=generator)
        cut = [_around(windows[w], int(p), around) for w, p in zip(chosen, places[chosen], strict=True)]
        cut += [_around(windows[w], int(p), around) for w, p in zip(silent, drawn, strict=True)]
        contexts[feature], counts[feature] = torch.stack(cut), len(chosen)
    return HeldOut(contexts, counts)


def _around(window: Tensor, place: int, around: int) -> Tensor:
    """The tokens on either side of a place [2 around + 1], -1 beyond the window."""
    wide = torch.nn.functional.pad(window, (around, around), value=-1)
    return wide[place : place + 2 * around + 1]


def predicted(words: Mapping[int, Tensor], found: HeldOut, embeddings: Tensor, frequent: Tensor) -> dict[int, float]:
    """Area under the curve by feature: how well a context's nearness to the words tells active from silent ones.

    Nearness is the largest cosine between the mean vector of the words and the vector of a token of the context that is
    not frequent. A feature without words gets 0.5, a guess.

    Args:
        words: {feature: [D], the mean of its words' vectors, centred}; features that lack stand for no words.
        embeddings: [V, D], centred, of length 1.
        frequent: bool [V].
    """
    areas = {}
    for feature, contexts in found.contexts.items():
        vector = words.get(feature)
        if vector is None or not vector.any():
            areas[feature] = 0.5
            continue
        nearness = embeddings[contexts.clamp(min=0)] @ torch.nn.functional.normalize(vector, dim=0)
        counted = (contexts >= 0) & ~frequent[contexts.clamp(min=0)]
        scores = nearness.masked_fill(~counted, -1.0).amax(1)
        active = [place < found.n[feature] for place in range(len(contexts))]
        areas[feature] = area_under_curve(scores.tolist(), active)
    return areas


def compared(ours: Mapping[int, float], theirs: Mapping[int, float], seed: int = 0) -> dict[str, float]:
    """Means over features, the mean difference with its 95 % bootstrap interval, and how often ours is better."""
    features = sorted(ours)
    a, b = (np.array([each[f] for f in features]) for each in (ours, theirs))
    drawn = np.random.RandomState(seed).randint(0, len(features), (N_RESAMPLES, len(features)))
    low, high = np.percentile((a - b)[drawn].mean(1), [2.5, 97.5])
    return {
        "ours": float(a.mean()), "theirs": float(b.mean()), "difference": float((a - b).mean()),
        "low": float(low), "high": float(high), "better": float((a > b).mean()), "worse": float((a < b).mean()),
        "features": len(features),
    }  # fmt: skip
