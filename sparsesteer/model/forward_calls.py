"""What one forward call of a language model shows: how many tokens, which are padding, which are the prompt."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor

_CACHE_NAMES = ("past_key_values", "past_kv_cache_entry", "cache_params")  # transformers, TransformerLens, Mamba


@dataclass
class ForwardCall:
    """B rows of T tokens that enter the model together, behind ``n_cached`` columns that a cache holds."""

    tokens: Tensor  # [B, T] ids, or what stands for them [B, T, ...]
    ids: Tensor | None  # [B, T], where they are known
    n_cached: int = 0
    n_prompt: int = 0  # of the T columns, the leading ones that are not generated
    real: Tensor | None = None  # bool [B, n_cached + T], False for padding; None if nothing is padding
    prompt_goes_on: bool = False  # the call before ended amid the prompt
    may_be_candidates: bool = False  # what n_prompt counts, of assisted generation that does not mark them

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.tokens.shape[0], self.tokens.shape[1]

    @cached_property
    def valid(self) -> Tensor | None:
        """bool [B, T], False for padding; None if nothing is padding."""
        return None if self.real is None else self.real[:, self.n_cached :]

    @cached_property
    def in_prompt(self) -> Tensor:
        """bool [1, T], True for the columns of the prompt."""
        return (torch.arange(self.shape[1], device=self.tokens.device) < self.n_prompt)[None]

    @cached_property
    def ranks(self) -> Tensor:
        """int64 [B or 1, T], each token's place among the real tokens of its row, cached ones included."""
        if self.real is None:
            return torch.arange(self.n_cached, self.n_cached + self.shape[1], device=self.tokens.device)[None]
        return self.real.long().cumsum(1)[:, self.n_cached :] - 1

    @cached_property
    def prompt_lengths(self) -> Tensor:
        """int64 [B or 1, 1], real tokens up to the end of the prompt."""
        end = self.n_cached + self.n_prompt
        if self.real is None:
            return torch.full((1, 1), end, device=self.tokens.device)
        return self.real[:, :end].sum(1, keepdim=True)


class CallReader(threading.local):
    """Turns the arguments of each forward call into a ``ForwardCall``; one memory per thread.

    A call of one token on a cache that is not empty carries a generated token. So do the last tokens of a call with a
    cache that asks for the logits of several, as assisted generation checks its candidates: all but one of them where
    the cache is empty, and all where nothing else is in the call. Without a cache, a sequence that repeats the prompt
    and is one token longer than in the call before carries generated tokens behind the prompt. Every other call carries
    a prompt, or a part of one.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._prompt: Tensor | None = None  # of the last call that began one
        self._n_columns = 0  # of the sequence after the last call
        self._real: Tensor | None = None  # of these columns
        self._ended_in_prompt = False
        self._cache: weakref.ref | None = None

    def read(self, args: tuple, kwargs: Mapping, around: Mapping) -> ForwardCall | None:
        """The call with these arguments; None if no tensor [B, T, ...] is among them.

        Args:
            around: what the modules around the one that is called were given.
        """
        given = named_arguments(self.names, args, kwargs)
        tokens = _first_given(given, ("input_ids", "inputs_embeds", *self.names[:1]))
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            return None
        cache = cache_in(given)
        if cache is None:
            _check_nothing_is_hidden(given, tokens.shape[1])
        n_cached = self._cache_length(cache)
        follows = self._n_columns == n_cached and self._remembers(cache)
        real = self._real_columns(given.get("attention_mask"), n_cached, tokens, follows)
        call = ForwardCall(tokens, _token_ids(tokens, around), n_cached, real=real)
        n_checked = around.get("logits_to_keep", given.get("logits_to_keep"))
        if n_cached:
            self._read_cached(call, n_checked, cache, follows)
        else:
            self._read_whole(call, n_checked, cache)
        self._n_columns = n_cached + call.shape[1]
        self._real = real
        self._cache = None if cache is None else weakref.ref(cache)
        return call

    def _read_cached(self, call: ForwardCall, n_checked: object, cache: object, follows: bool) -> None:
        n_tokens = call.shape[1]
        generated = n_tokens == 1 or _is_number(n_checked) and n_checked == n_tokens
        call.n_prompt = 0 if generated else n_tokens
        call.prompt_goes_on = follows and self._ended_in_prompt and not generated
        call.may_be_candidates = not generated and hasattr(cache, "cross_attention_cache")
        self._ended_in_prompt = not generated

    def _read_whole(self, call: ForwardCall, n_checked: object, cache: object) -> None:
        if cache is None and self._repeats_prompt(call.tokens):
            call.n_prompt = self._prompt.shape[1]  # type: ignore[union-attr]
            return
        n_candidates = n_checked - 1 if cache is not None and _is_number(n_checked) and n_checked > 1 else 0
        call.n_prompt = max(call.shape[1] - n_candidates, 0)
        self._prompt = call.tokens[:, : call.n_prompt].detach()
        self._ended_in_prompt = n_candidates == 0

    def _repeats_prompt(self, tokens: Tensor) -> bool:
        prompt = self._prompt
        if prompt is None or tokens.shape[1] != self._n_columns + 1 or tokens.shape[0] != prompt.shape[0]:
            return False
        return tokens.shape[2:] == prompt.shape[2:] and torch.equal(tokens[:, : prompt.shape[1]], prompt)

    def _remembers(self, cache: object) -> bool:
        return cache is not None and self._cache is not None and self._cache() is cache

    def _real_columns(self, mask: object, n_cached: int, tokens: Tensor, follows: bool) -> Tensor | None:
        n_rows, n_tokens = tokens.shape[:2]
        # A generated token is real. One row needs no mask for it: nothing else would be left of that row. The masks of
        # static caches with a sliding window have no more columns than this.
        is_sliding = follows and n_tokens == 1 and not _covers(mask, n_cached + 1)
        if mask is None or n_cached and n_tokens == 1 and (n_rows == 1 or is_sliding):
            known = self._real if follows and self._real is not None and len(self._real) == n_rows else None
            return None if known is None else torch.nn.functional.pad(known, (0, n_tokens), value=True)
        real = real_columns(mask, n_cached, n_tokens)
        return None if n_rows == 1 and real is not None and bool(real.all()) else real

    def _cache_length(self, cache: object) -> int:
        """Columns that a cache holds. Raises TypeError where it does not tell."""
        if cache is None:
            return 0
        if hasattr(cache, "past_keys"):  # an entry of TransformerLens's cache
            return cache.past_keys.shape[1]
        try:
            return int(cache.get_seq_length())  # type: ignore[attr-defined]
        except AttributeError:
            raise TypeError(
                f"steer: cannot read how many tokens a {type(cache).__name__} holds; give the cache as a transformers "
                "Cache, or call the model with use_cache=False"
            ) from None
        except ValueError:  # recurrent layers alone, as of Mamba: a state, and no number of tokens
            return self._n_columns_of_state(cache)

    def _n_columns_of_state(self, cache: Any) -> int:
        if not len(cache) or not cache.has_previous_state():
            return 0
        if not self._remembers(cache):
            raise TypeError(
                f"steer: this {type(cache).__name__} holds a recurrent state, which does not tell of how many tokens; "
                "give the model the same cache from the sequence's first call on, inside the with block"
            )
        return self._n_columns


def real_columns(mask: object, n_cached: int, n_tokens: int) -> Tensor | None:
    """bool [B, n_cached + T], False for padding, from a mask as language models take them.

    Args:
        mask: [B, n_cached + T or more], nonzero for real tokens; or [B, 1, T, columns], boolean (True: attend) or
            added to the scores (0: attend); or a dict of such.

    Raises:
        TypeError, ValueError: another kind of mask.
    """
    n_columns = n_cached + n_tokens
    if isinstance(mask, Mapping):
        wide = [m for m in mask.values() if m is None or isinstance(m, Tensor) and m.shape[-1] >= n_columns]
        mask = mask.get("full_attention", wide[0] if wide else None)
        if mask is None and not wide:
            raise ValueError("steer: no mask of the attention_mask dict covers the whole sequence; give a 2-D one")
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        what = f"{mask.dim()}-D" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"steer: attention_mask should be a tensor [B, T] or [B, 1, T, T], got {what}")
    if mask.shape[-1] < n_columns:
        raise ValueError(
            f"steer: attention_mask should cover {n_columns} columns ({n_cached} cached, {n_tokens} new), "
            f"got shape {list(mask.shape)}"
        )
    if mask.dim() == 2:
        return mask[:, :n_columns] != 0
    attends = mask[:, 0, :, :n_columns]
    attends = attends if mask.dtype == torch.bool else attends == 0
    # A real token attends to itself; the last token shows which of the cached ones are real.
    return torch.cat([attends[:, -1, :n_cached], attends.diagonal(n_cached, 1, 2)], dim=1)


def _covers(mask: object, n_columns: int) -> bool:
    masks = list(mask.values()) if isinstance(mask, Mapping) else [mask]
    return any(isinstance(each, Tensor) and each.shape[-1] >= n_columns for each in masks)


def _check_nothing_is_hidden(given: Mapping, n_tokens: int) -> None:
    """A call without a cache should bring the whole sequence."""
    mask = given.get("attention_mask")
    if given.get("state") is not None or isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > n_tokens:
        raise TypeError(
            f"steer: this call brings {n_tokens} tokens that go on from a state, which does not tell of how many; "
            "call the model with use_cache=False"
        )


def named_arguments(names: Sequence[str], args: tuple, kwargs: Mapping) -> dict[str, Any]:
    """What a module was called with, by the names of its arguments."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def cache_in(given: Mapping) -> object:
    """The cache among the arguments of a call, or in what it returns; None if there is none."""
    return _first_given(given, _CACHE_NAMES)


def _first_given(given: Mapping, names: Sequence[str]) -> object:
    return next((given[name] for name in names if given.get(name) is not None), None)


def _token_ids(tokens: Tensor, around: Mapping) -> Tensor | None:
    """Ids [B, T]: a model of images and text, or TransformerLens, hands embeddings of them on to its blocks."""
    for ids in (tokens, around.get("input_ids"), around.get("input")):
        if isinstance(ids, Tensor) and not ids.is_floating_point() and ids.shape == tokens.shape[:2]:
            return ids
    return None


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
