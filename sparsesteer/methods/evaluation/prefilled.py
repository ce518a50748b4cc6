"""Answers to the same prompts under one steering after the other, which are read once."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsesteer.methods.spare.answering import Answerer, Begun
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.model.places import Place, argument_names

_LEFT = 2  # tokens read anew each time: ss.steer takes a single one behind a cache for a generated token
_WRONG_BY = 3  # tokens: an article, a full stop and the line's end add nothing to an answer
_FEWEST_SHARED = 8  # tokens that are worth a call of their own


class PrefilledAnswerer(Answerer):
    """Answers as ``Answerer`` does where only the last token of the prompt, or what follows, is steered.

    Each batch is read up to its last two tokens, unsteered, and what the model's cache holds then is kept; an answer
    goes on from a copy. What prompts begin with in common is read once for all of them.

    Args:
        places: whose states are read, as they are behind the last token.
        most_batches: whose caches are kept, the latest asked for.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_new_tokens: int,
        places: Mapping[Any, Place] | None = None,
        most_batches: int = 32,
    ) -> None:
        super().__init__(model, tokenizer, places or {}, max_new_tokens)
        self.most_batches = most_batches
        self._kept: OrderedDict[tuple[str, ...], Begun] = OrderedDict()

    @torch.no_grad()
    def prepare(self, prompts: Sequence[str]) -> None:
        """Read a batch that is to be answered next; called before a steering is entered."""
        key = tuple(prompts)
        if key not in self._kept:
            self._kept[key] = self._prefilled(key)
        self._kept.move_to_end(key)
        while len(self._kept) > self.most_batches:
            self._kept.popitem(last=False)

    def begun(self, prompts: Sequence[str]) -> Begun:
        """A batch that was prepared, to go on from once.

        Raises:
            RuntimeError: it was not prepared: reading it here would be steered, and kept as such.
        """
        batch = self._kept.get(tuple(prompts))
        if batch is None:
            raise RuntimeError("these prompts were not read yet; call prepare(prompts) before steering")
        return replace(batch, cache=_copied(batch.cache))

    def answers(
        self, conflicts: Sequence[Conflict], options: Mapping[str, Any] | None = None
    ) -> tuple[list[str], dict[Any, Tensor]]:
        """See ``Answerer``; the model stops where an answer is too long to be right."""
        return super().answers(conflicts, self.room(conflicts) | dict(options or {}))

    def room(self, conflicts: Sequence[Conflict]) -> dict[str, int]:
        """An option of ``read``: how many tokens an answer may have, some more than all that are right."""
        longest = max(map(self.answer_length, conflicts))
        return {"max_new_tokens": min(self.max_new_tokens, longest + _WRONG_BY)}

    def answer_length(self, conflict: Conflict) -> int:
        """Tokens of the longest answer of either side."""
        texts = [f" {answer}" for answer in (*conflict.sub_answer, *conflict.org_answer)]
        return max(map(len, self.tokenizer(texts, add_special_tokens=False)["input_ids"]))

    def _prefilled(self, prompts: Sequence[str]) -> Begun:
        ids, mask = self.padded(prompts)
        end = ids.shape[1] - _LEFT
        if end < 1:
            raise ValueError(f"prompts of {_LEFT} tokens or fewer leave nothing to be read before them")
        cache, n_read = self._shared(ids[:, :end], mask[:, :end])
        return Begun(ids, mask, self._call(ids[:, n_read:end], mask[:, :end], cache), end)

    def _shared(self, ids: Tensor, mask: Tensor) -> tuple[Any, int]:
        """(cache of the columns that follow from the tokens all rows begin with, how many); (None, 0) of too few."""
        padding = (mask == 0).sum(1)
        rows = [row[n:] for row, n in zip(ids, padding.tolist(), strict=True)]
        shortest = min(map(len, rows))
        differ = torch.stack([row[:shortest] != rows[0][:shortest] for row in rows]).any(0).nonzero()
        n_shared = min(int(differ[0]) if len(differ) else shortest, ids.shape[1] - 1)
        if len(rows) == 1 or n_shared < max(_FEWEST_SHARED, int(padding.max())):
            return None, 0
        cache = self._call(rows[0][None, :n_shared], torch.ones_like(mask[:1, :n_shared]), None)
        if not _grows(cache):
            return None, 0  # a window or a state: not to be cut
        # padded rows hold less of it: row i has padding[i] columns that are masked, then the first tokens
        places = (torch.arange(n_shared, device=ids.device) - padding[:, None]).clamp(min=0)
        for layer in cache.layers:
            layer.keys, layer.values = (each[0][:, places].transpose(0, 1) for each in (layer.keys, layer.values))
        return cache, n_shared

    def _call(self, ids: Tensor, mask: Tensor, cache: Any) -> Any:
        """The cache after the last columns [B, T] of a mask's were read."""
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        wanted = {"position_ids": places, "logits_to_keep": 1}
        given = {name: value for name, value in wanted.items() if name in argument_names(self.model)}
        read = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
        return read.past_key_values


def _copied(cache: Any) -> Any:
    """A cache that goes on apart from this one; tensors that are only ever replaced, not written to, are shared."""
    if not _grows(cache):
        return deepcopy(cache)
    other = copy(cache)
    other.layers = [copy(layer) for layer in cache.layers]
    return other


def _grows(cache: Any) -> bool:
    """Whether every layer of a cache is a pair of tensors, to which new columns are appended."""
    return all(type(layer).__name__ == "DynamicLayer" for layer in getattr(cache, "layers", [None]))
