"""What states and features know of the behaviour before anything is steered: why a layer can be steered, or cannot."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsesteer import ops, reference
from sparsesteer.methods.evaluation.contenders import Fitted
from sparsesteer.methods.spare.collection import Collection
from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY
from sparsesteer.methods.spare.measuring import codes_of
from sparsesteer.methods.spare.spare import SPARE

_SHRINKAGE = 0.1  # of the covariance toward its mean variance


def layer_scan(fitted: Fitted, held_out: Collection, k: int, alpha: float) -> list[dict[str, Any]]:
    """For every collected site what can be read off it about answers that were not fitted on.

    Each row has: ``auc``, of a linear discriminant of the states; and where there is an SAE ``auc_features``, of one of
    the k selected features' activations; ``unexplained``, the SAE's share of the states' variance that it does not
    give back; ``max_mi``, in nats; ``edit_norm``, the mean length of SPARE's edits at ``alpha`` as a share of the
    states'; ``edit_cosine``, of the mean edit toward context, minus that toward memory, with the difference of means.
    """
    rows = []
    for site, states in fitted.collection.states.items():
        row = {"site": site, "auc": _auc(states, fitted.collection.labels, held_out.states[site], held_out.labels)}
        if site in fitted.spare.saes:
            row |= _of_sae(fitted, held_out, site, k, alpha)
        rows.append(row)
    return rows


def _of_sae(fitted: Fitted, held_out: Collection, site: Any, k: int, alpha: float) -> dict[str, float]:
    spare = fitted.selected([site], k)
    sae, known = spare.saes[site], spare.statistics[site]
    x = held_out.states[site].to(sae.device)
    chosen = sorted(known.features(spare.selection, "context") + known.features(spare.selection, "memory"))
    train, test = (
        codes_of(sae, reference.read_input(some.to(sae.device), None), 0, sae.d_sae)[:, chosen].cpu()
        for some in (fitted.collection.states[site], x)
    )
    rebuilt = sae.decode(sae.encode(x))
    return {
        "auc_features": _auc(train, fitted.collection.labels, test, held_out.labels),
        "unexplained": float((x - rebuilt).pow(2).sum() / (x - x.mean(0)).pow(2).sum()),
        "max_mi": float(known.mi.max()),
        **_edit(spare, site, x, fitted.collection.states[site], fitted.collection.labels, alpha),
    }


def _edit(spare: SPARE, site: Any, x: Tensor, states: Tensor, labels: Tensor, alpha: float) -> dict[str, float]:
    toward_context, toward_memory = (ops.steer(x, spare.plan(side, alpha)[site]) - x for side in ("context", "memory"))
    dense = states[labels == CONTEXT].mean(0) - states[labels == MEMORY].mean(0)
    mean = (toward_context - toward_memory).mean(0)
    norms = torch.linalg.vector_norm(torch.cat([toward_context, toward_memory]), dim=-1)
    return {
        "edit_norm": float(norms.mean() / torch.linalg.vector_norm(x, dim=-1).mean()),
        "edit_cosine": float(torch.cosine_similarity(mean.cpu(), dense, dim=0)),
    }


def _auc(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """How well a shrunken linear discriminant [D] tells context (above) from memory; NaN of one kind alone."""
    x, y = train.double(), labels == CONTEXT
    context, memory = x[y].mean(0), x[~y].mean(0)
    residual = torch.where(y[:, None], x - context, x - memory)
    covariance = residual.T @ residual / len(x)
    mean_variance = covariance.diagonal().mean()
    shrunken = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * mean_variance * torch.eye(len(covariance)).double()
    scores = test.double() @ torch.linalg.lstsq(shrunken, (context - memory)[:, None], driver="gelsd").solution[:, 0]
    return area_under_curve(scores.tolist(), (test_labels == CONTEXT).tolist())


def area_under_curve(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """The chance that a positive one has the higher score, ties counting half; NaN where a kind is missing."""
    values, truth = np.asarray(scores), np.asarray(positive, dtype=bool)
    above, below = values[truth], values[~truth]
    if not len(above) or not len(below):
        return float("nan")
    ranked = np.sort(below)
    wins = np.searchsorted(ranked, above, "left") + np.searchsorted(ranked, above, "right")
    return float(wins.mean() / 2 / len(below))
