"""What happens in the thread of transformers' generation loop: specs come and go, each step gets its map of tokens."""

import inspect
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from torch import Tensor

from sparsesteer.bank import Bank
from sparsesteer.model.places import Place
from sparsesteer.model.sites import ModelSites
from sparsesteer.serving.admission import Steered
from sparsesteer.serving.residency import Residency
from sparsesteer.serving.spec_store import SpecStore
from sparsesteer.serving.steered_block import BankReader
from sparsesteer.serving.token_map import TokenMap

TRIED_VERSIONS = ("5.23.0",)
_CHILD = "__child#"  # what stands between a request's id and the number of a further answer to it

# methods of a batch processor's parts that are wrapped, with the arguments by which they are known
_SEAMS = {
    "scheduler.add_waiting_request": ("state",),
    "cache.search_prefix_match": ("request_id", "prompt_ids"),
    "inputs_and_outputs.prepare_batch_tensors": (
        "requests_in_batch",
        "logits_processors",
        "use_decode_fast_path",
        "num_q_tokens",
        "max_kv_read",
        "use_padding",
    ),
}
_ALLOCATOR_SEAM = ("mark_complete_blocks", ("request_id", "token_ids", "new_new_blocks"))


class SteeredLoop:
    """Requests that wait or run, and the banks they read. All but ``want`` is called by the loop's thread alone."""

    def __init__(self, model: Any, residency: Residency, store: SpecStore) -> None:
        self._residency = residency
        self._store = store
        self._places = _places(model, residency)
        self._wanted: dict[str, Steered] = {}  # requests on their way to the loop
        self._held: dict[str, tuple[int, Steered]] = {}
        self._tokens: TokenMap | None = None
        self._thread: int | None = None

    @property
    def steered_tokens(self) -> int:
        """Since the start."""
        return 0 if self._tokens is None else self._tokens.steered_tokens

    def want(self, request_id: str, steered: Steered | None) -> None:
        """What a request shall get that is about to be handed to the manager; None takes it back."""
        if steered is None:
            self._wanted.pop(request_id, None)
        else:
            self._wanted[request_id] = steered

    def arm(self, processor: Any, undo: ExitStack) -> None:
        """Wrap the parts of a batch processor, and hook the model until ``undo`` is closed.

        Raises:
            RuntimeError: parts that are not as in the versions that were tried.
        """
        _check_seams(processor)
        scheduler = processor.scheduler
        device = self._residency.banks[0].bank.device
        self._tokens = TokenMap(processor.max_batch_tokens, scheduler.max_requests_per_batch, device)
        _wrap(scheduler, "add_waiting_request", lambda original, state: self._on_waiting(original, scheduler, state))
        _wrap(processor.cache, "search_prefix_match", self._on_search)
        for allocator in processor.cache.cache_allocators.values():
            _wrap(allocator, _ALLOCATOR_SEAM[0], self._on_complete)
        _wrap(
            processor.inputs_and_outputs,
            "prepare_batch_tensors",
            self._on_prepare,
        )
        for place, banks in self._places:
            undo.callback(place.attach(self._steering([BankReader(bank, self._tokens) for bank in banks])))

    def let_go(self) -> None:
        """No request is left."""
        self._wanted.clear()
        for _, steered in self._held.values():
            self._residency.release(steered.id)
        self._held.clear()

    def _on_waiting(self, original: Callable[..., Any], scheduler: Any, state: Any) -> None:
        """``Scheduler.add_waiting_request``: what is raised here fails this request alone."""
        self._release_finished(scheduler, besides=state.request_id)
        steered = self._wanted.pop(state.request_id, None)
        if steered is not None:
            found = self._store.find(steered.id)
            assert found is not None and self._tokens is not None  # specs are never taken back
            self._held[state.request_id] = self._residency.acquire(*found), steered
            self._tokens.invalidate()  # the id may have been another request's
        original(state)

    def _on_prepare(self, original: Callable[..., Any], **batch: Any) -> None:
        """``ContinuousBatchingIOs.prepare_batch_tensors``: afterwards each request stands behind its new tokens."""
        self._thread = threading.get_ident()
        original(**batch)
        requests = batch["requests_in_batch"]
        n_new = np.array([each.query_length for each in requests])
        n_read = np.array([each.state.position_offset for each in requests]) - n_new
        assert self._tokens is not None
        self._tokens.set_rows([each.state.request_id for each in requests], lambda each: self._held.get(_root(each)))
        self._tokens.fill(n_new, n_read)

    def _on_search(self, original: Callable[..., Any], request_id: str, prompt_ids: list[int]) -> int:
        """``PagedAttentionCache.search_prefix_match``: only blocks before the first steered token are like others'."""
        first = self._first_steered(request_id)
        # one token more: a match never covers all that it is given
        return original(request_id, prompt_ids if first is None else prompt_ids[: first + 1])

    def _on_complete(self, original: Callable[..., Any], request_id: str, token_ids: list[int], new: int) -> None:
        """``CacheAllocator.mark_complete_blocks``: others may have the blocks before the first steered token."""
        first = self._first_steered(request_id)
        original(request_id, token_ids if first is None else token_ids[:first], new)

    def _first_steered(self, request_id: str) -> int | None:
        _, steered = self._held.get(_root(request_id), (0, None))
        return steered.windows[0][0] if steered is not None and steered.windows and steered.strength else None

    def _steering(self, readers: list[BankReader]) -> Callable[[Tensor], Tensor]:
        """What a block's output [1, N, D] becomes in a step of the loop; calls of other threads are not its own."""

        def steer(hidden: Tensor) -> Tensor:
            if threading.get_ident() != self._thread or self._tokens.idle:  # type: ignore[union-attr]
                return hidden
            flat = hidden.flatten(0, -2)
            for reader in readers:
                flat = reader(flat, None)
            return flat.view(hidden.shape)

        return steer

    def _release_finished(self, scheduler: Any, besides: str) -> None:
        """Give back what nobody holds any more; ``besides`` is about to wait, once more if it was put off."""
        live = {_root(each) for each in (*scheduler.active_requests, *scheduler.waiting_requests, besides)}
        for request_id in self._held.keys() - live:
            _, steered = self._held.pop(request_id)
            self._residency.release(steered.id)


def _places(model: Any, residency: Residency) -> list[tuple[Place, list[Bank]]]:
    """Each steered block's output, with its banks. Raises ValueError for one that is not there or of another width."""
    sites = ModelSites.of(model)
    found = []
    for block in sorted({each.block for each in residency.banks}):
        place, banks = sites.resolve(block), [each.bank for each in residency.banks if each.block == block]
        for bank in banks:
            if place.width not in (None, bank.encoder.shape[1]):
                raise ValueError(f"the SAE after block {block} has width {bank.encoder.shape[1]}, not {place.width}")
        found.append((place, banks))
    return found


def _root(request_id: str) -> str:
    """The request that this one answers once more, or itself."""
    return request_id.partition(_CHILD)[0]


def _wrap(owner: Any, name: str, function: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: function(original, *args, **kwargs))


def _check_seams(processor: Any) -> None:
    """Raise RuntimeError for parts that are called otherwise than in the versions that were tried."""
    for name, wanted in _SEAMS.items():
        part, _, method = name.partition(".")
        _check_arguments(getattr(getattr(processor, part), method), name, wanted)
    for allocator in processor.cache.cache_allocators.values():
        _check_arguments(getattr(allocator, _ALLOCATOR_SEAM[0]), *_ALLOCATOR_SEAM)


def _check_arguments(method: Any, name: str, wanted: tuple[str, ...]) -> None:
    have = tuple(inspect.signature(method).parameters)
    if have != wanted:
        raise RuntimeError(
            f"sparsesteer knows continuous batching of transformers {', '.join(TRIED_VERSIONS)}; here {name} takes "
            f"{', '.join(have)}, known is {', '.join(wanted)}"
        )
