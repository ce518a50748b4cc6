"""Where in a corpus each feature is most active, and how often it is active at all; streamed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsesteer.generation import hidden_states_at, token_texts
from sparsesteer.ops import SparseCodes
from sparsesteer.sae import SAE

LENGTH = 128  # tokens that are read at once
AROUND = 8  # tokens shown on either side of the most active one
DIGITS = 4


@dataclass(frozen=True, eq=False)
class TopContexts:
    """Of every feature the places where it was most active, one for each window of text.

    Attributes:
        values: [F, n], falling; 0 where there were fewer.
        windows, positions: int64 [F, n], window of the text and token in it; -1 where there were fewer.
        tokens: int64 [windows, LENGTH], all that was read.
        density: [F], share of the tokens at which a feature was active.
    """

    values: Tensor
    windows: Tensor
    positions: Tensor
    tokens: Tensor
    density: Tensor


def windows_of(texts: Iterable[str], tokenizer: Any, n_tokens: int) -> Tensor:
    """int64 [windows, LENGTH], the first tokens of all texts in a row.

    Raises:
        ValueError: less text than one window.
    """
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text)["input_ids"]
        if len(ids) >= n_tokens:
            break
    count = min(len(ids), n_tokens) // LENGTH
    if not count:
        raise ValueError(f"{len(ids)} tokens of text are fewer than one window of {LENGTH}")
    return torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)


@torch.no_grad()
def states_of(model: Any, sae: SAE, windows: Tensor, batch: int = 8) -> Iterator[Tensor]:
    """[b, LENGTH, D] for each batch of windows, what the SAE reads."""
    for some in windows.split(batch):
        with hidden_states_at(model, sae.site) as caught:
            model(input_ids=some.to(model.device), use_cache=False)
        yield caught[0].float().to(sae.device)


@torch.no_grad()
def top_contexts(model: Any, sae: SAE, windows: Tensor, count: int = 5, batch: int = 8) -> TopContexts:
    """Read a corpus once; of the activations a batch exists at a time, sparse, and the best ``count`` of each feature.

    The first token of each window, where many models park attention, is left out.
    """
    values = torch.zeros(sae.d_sae, count)
    numbers = torch.full((sae.d_sae, count), -1)
    places = torch.full((sae.d_sae, count), -1)
    active = torch.zeros(sae.d_sae)
    first = 0
    for h in states_of(model, sae, windows, batch):
        codes = sae.encode_sparse(h[:, 1:].flatten(0, 1))
        best, where, times = _best_of_each(codes, len(h), h.shape[1] - 1, sae.d_sae)
        active += times
        window = torch.arange(first, first + len(h)).expand(sae.d_sae, -1)
        window = torch.where(best > 0, window, -1)
        values, order = torch.cat([values, best], 1).topk(count, dim=1)
        numbers = torch.cat([numbers, window], 1).gather(1, order)
        places = torch.cat([places, where + 1], 1).gather(1, order)
        first += len(h)
    places = torch.where(numbers >= 0, places, -1)
    n_read = windows.shape[0] * (windows.shape[1] - 1)
    return TopContexts(values, numbers, places, windows, active / n_read)


@torch.no_grad()
def context_notes(model: Any, tokenizer: Any, sae: SAE, found: TopContexts, most: int = 3) -> list[dict[str, Any]]:
    """For every feature {"contexts": [{"tokens", "activations"}]}, for ``Explanations.with_notes``.

    The windows are read again: activations at all tokens of all features were never kept.

    Args:
        most: contexts of each feature.
    """
    wanted: dict[int, list[tuple[int, int]]] = {}
    for feature, windows in enumerate(found.windows[:, :most].tolist()):
        for window, position in zip(windows, found.positions[feature, :most].tolist(), strict=True):
            if window >= 0:
                wanted.setdefault(window, []).append((feature, position))
    notes: list[list[dict[str, Any]]] = [[] for _ in range(len(found.values))]
    numbers = sorted(wanted)
    for window, h in zip(numbers, states_of(model, sae, found.tokens[numbers], batch=1), strict=True):
        texts = token_texts(tokenizer, found.tokens[window].tolist())
        features = torch.tensor([feature for feature, _ in wanted[window]])
        codes = sae.encode(h[0])[:, features.to(h.device)].cpu()
        for column, (feature, position) in zip(codes.T, wanted[window], strict=True):
            part = slice(max(0, position - AROUND), position + AROUND + 1)
            activations = [float(f"{a:.{DIGITS}g}") for a in column[part].tolist()]
            notes[feature].append({"tokens": texts[part], "activations": activations})
    return [{"contexts": sorted(some, key=lambda each: -max(each["activations"]))} if some else {} for some in notes]


def _best_of_each(codes: SparseCodes, n_windows: int, length: int, n_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """(largest activation [F, b] in each window, the token [F, b] that has it, tokens [F] that have any)."""
    values, features = codes.values.float().cpu(), codes.indices.long().cpu()
    kept = (features >= 0) & (values > 0)
    token = torch.arange(len(values))[:, None].expand_as(values)[kept]
    values, features = values[kept], features[kept]
    cell = features * n_windows + token // length
    best = torch.zeros(n_features * n_windows).scatter_reduce_(0, cell, values, "amax")
    highest = values == best[cell]
    where = torch.zeros(n_features * n_windows, dtype=torch.int64)
    where[cell[highest]] = (token % length)[highest]
    times = torch.bincount(features, minlength=n_features).float()
    return best.view(n_features, n_windows), where.view(n_features, n_windows), times
