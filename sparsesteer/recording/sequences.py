"""Which sequence the rows of a forward call go on with: a text is read over many calls, beside other texts."""

import itertools
import threading
import types
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from sparsesteer.model.forward_calls import ForwardCall


class SequenceTracker(threading.local):
    """Numbers the rows of every call of one model; one memory a thread, the numbers are those of all threads.

    A call on a cache goes on with the rows of the call that filled it, a call without one that repeats its prompt and
    is a token longer with the rows before it. Every other call begins new sequences.
    """

    def __init__(self, numbers: Iterator[int] | None = None) -> None:
        self._numbers = itertools.count() if numbers is None else numbers
        self._rows: list[int] = []
        self._n_columns = 0
        self._tokens: Tensor | None = None  # of a call without a cache
        self._cache: weakref.ref | None = None

    def rows_of(self, call: ForwardCall, cache: object) -> tuple[list[int], int]:
        """(the number of each row's sequence, the first column that is new).

        Raises:
            ValueError: rows that changed places, as in beam search.
        """
        n_rows, n_tokens = call.shape
        first_new = 0
        if call.n_cached:
            goes_on = self._cache is not None and self._cache() is cache and call.n_cached == self._n_columns
        else:
            goes_on = cache is None and call.n_prompt < n_tokens and self._n_columns == n_tokens - 1
            first_new = n_tokens - 1 if goes_on else 0
            if goes_on and self._tokens is not None and not torch.equal(call.tokens[:, :-1], self._tokens):
                raise swapped_rows()
        if not goes_on or len(self._rows) != n_rows:
            self._rows, first_new = [next(self._numbers) for _ in range(n_rows)], 0
        self._n_columns = call.n_cached + n_tokens
        self._tokens = None if call.n_cached else call.tokens.detach()
        return self._rows, first_new

    def end_call(self, cache: object) -> None:
        """Remember the cache that the call has filled, None for no cache."""
        self._cache = None if cache is None else weakref.ref(cache)
        if cache is not None:
            self._tokens = None


def swapped_rows() -> ValueError:
    """The error of rows that are no texts."""
    return ValueError(
        "record: beam search moves the rows of a call to other places, so that what a row reads is no text; generate "
        "with num_beams=1, or record the model on the finished text"
    )


class BeamGuard:
    """Makes caches refuse to reorder their rows while a recording reads them."""

    def __init__(self) -> None:
        self._caches: weakref.WeakSet = weakref.WeakSet()
        self.active = True

    def watch(self, cache: object) -> None:
        """Refuse on this cache, and on its copies, until ``release``."""
        if not hasattr(cache, "reorder_cache") or cache in self._caches:
            return

        def reorder_cache(own: object, beam_idx: Tensor) -> None:
            if self.active:
                raise swapped_rows()
            type(own).reorder_cache(own, beam_idx)  # type: ignore[attr-defined]

        cache.reorder_cache = types.MethodType(reorder_cache, cache)  # type: ignore[attr-defined]
        self._caches.add(cache)

    def release(self) -> None:
        """Give all caches their own method back."""
        self.active = False
        for cache in self._caches:
            vars(cache).pop("reorder_cache", None)
        self._caches.clear()
