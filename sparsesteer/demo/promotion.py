"""Which words a feature makes likelier, measured in the model itself.

The logit lens reads a decoder row as if no block came after it; half-way up a small model that misses most.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer.demo.block_hook import transformed
from sparsesteer.demo.setting import Track

BATCH = 32


@torch.no_grad()
def open_places(model: nn.Module, ids: Tensor, start: int, n: int) -> Tensor:
    """The n positions from ``start`` on in ids [1, T] where the next token is least certain (entropy), int64 [n]."""
    log_p = model(ids, use_cache=False).logits[0, start:].float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return entropy.topk(min(n, len(entropy))).indices + start


@torch.no_grad()
def gained_probability(
    model: nn.Module, block: nn.Module, changes: Tensor, ids: Tensor, places: Tensor, words: Tensor, track: Track
) -> Tensor:
    """What adding a change to a token's hidden state adds to the probabilities of the next word.

    Args:
        changes: [M, D], each added alone to the output of ``block`` at one place.
        places: int64 positions in ids [1, T]; the result is the mean over them.
        words: int64 [W] token ids.

    Returns:
        [M, W] differences of probabilities.
    """
    gained = torch.zeros(len(changes), len(words), device=changes.device)
    work = [(place, start) for place in places.tolist() for start in range(0, len(changes), BATCH)]
    for place, start in track(work, "Reading features"):
        rows = changes[start : start + BATCH]
        before = model(ids[:, :place], use_cache=True).past_key_values
        unsteered = _next(model, before, ids[:, place : place + 1], 1)
        with transformed(block, lambda h, rows=rows: h + rows[:, None].to(h)):
            steered = _next(model, before, ids[:, place : place + 1], len(rows))
        gained[start : start + BATCH] += (steered - unsteered)[:, words] / len(places)
    return gained


def _next(model: nn.Module, cache: Any, token: Tensor, rows: int) -> Tensor:
    """Next-token probabilities [rows, V] after ``token`` [1, 1], each row with a copy of the cache."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return model(token.expand(rows, 1), past_key_values=cache, use_cache=True).logits[:, -1].float().softmax(-1)
