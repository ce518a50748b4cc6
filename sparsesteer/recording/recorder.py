"""Recording what features do while a model runs."""

import itertools
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer import ops
from sparsesteer.model import running_calls
from sparsesteer.model.call_hooks import after_calls, before_calls, drop_compiled_code, note_arguments
from sparsesteer.model.forward_calls import CallReader, ForwardCall, cache_in, named_arguments
from sparsesteer.model.places import Stage, argument_names
from sparsesteer.plans import SteeringPlan
from sparsesteer.recording.calls import RecordedCall, call_of
from sparsesteer.recording.recording import Recording
from sparsesteer.recording.sequences import BeamGuard, SequenceTracker
from sparsesteer.recording.watched import Features, named_record, order_of, watched_sites
from sparsesteer.sae import SAE

Found = tuple[int, Stage, Tensor, Tensor | None]  # site, stage, f [..., M], and h [..., D] until the next stage


def record(
    model: nn.Module,
    sae: SAE | Mapping[Any, SAE],
    features: Features | Mapping[Any, Features],
    *,
    tokenizer: Any = None,
    last: int | None = None,
    on_tokens: Callable[[Recording], None] | None = None,
) -> "Recorder":
    """Record activations of features inside a ``with`` block; the model computes what it computes without, bit for bit.

        with ss.record(model, sae, features=[12, 99], tokenizer=tokenizer) as recording:
            model.generate(**inputs)
        recording.before, recording.after     # [tokens, 2]
        recording.to_html("recording.html")

    It may stand inside or around ``ss.steer``: ``before`` is what entered the site, ``after`` what all edits there
    left. Only the rows of these features are read, and of a TopK SAE its encoder.

    The tokens are those that the model reads: the last one that it writes is not among them. Speculative decoding
    leaves the tokens that it takes back in the recording; where it goes on a new sequence begins. A model that was
    compiled whole is compiled anew on entering and on leaving, as by ``ss.steer``; its compiled code may then round
    otherwise than without hooks.

    Args:
        model: as ``ss.steer`` takes it.
        sae: the SAE, whose site is known; or {site: SAE}, sites named as ``ss.steer`` takes them.
        features: a list of features, or an Edit or a plan, whose features are meant; {site: features} where there are
            several sites.
        tokenizer: for the texts of the tokens in ``texts``, pictures and pages.
        last: how many tokens are kept at most, the last ones, over all sequences; None for all, 0 for none.
        on_tokens: called after every call of the model, in its thread, with a recording of that call's tokens alone.

    Everything recorded lies on the CPU. From a GPU it is copied behind the model's work, which does not wait, unless
    ``last`` or ``on_tokens`` need it at once.

    Raises:
        TypeError, ValueError: arguments that do not fit; a site that the model lacks; an SAE of another width.

    Inside the block the model raises
        ValueError: under beam search, whose rows are no texts.
        RuntimeError: if a site does not run once in each call of the model, or not on all of its tokens.
    """
    return Recorder(model, sae, features, tokenizer, last, on_tokens)


class _OpenCalls(threading.local):
    """What was found so far in the forward call that runs in this thread, for every module whose calls are read.

    Emptied outside compiled code, which therefore meets the same empty list at every call.
    """

    def __init__(self) -> None:
        self.found: dict[int, list[Found]] = {}
        self.call: dict[int, tuple[ForwardCall | None, object]] = {}

    def close(self, key: int) -> tuple[list[Found], tuple[ForwardCall | None, object]]:
        """What was found, and the call with the cache that it was given; forgotten here."""
        return self.found.pop(key, []), self.call.pop(key, (None, None))


_open_calls = _OpenCalls()
_new_key = itertools.count()


class Recorder:
    """What ``record`` returns: a context that gives a recording, a new one each time it is entered."""

    def __init__(
        self,
        model: nn.Module,
        sae: Any,
        features: Any,
        tokenizer: Any,
        last: int | None,
        on_tokens: Callable[[Recording], None] | None,
    ) -> None:
        if last is not None and (not isinstance(last, int) or isinstance(last, bool) or last < 0):
            raise ValueError(f"record: last should be a number of tokens or None, got {last!r}")
        if on_tokens is not None and not callable(on_tokens):
            raise TypeError(f"record: on_tokens should be a function, got {type(on_tokens).__name__}")
        self._source, self._sites = watched_sites(model, sae, features)
        self._columns = [column for site in self._sites for column in site.columns]
        self._order = order_of(self._sites)
        self._tokenizer, self._last, self._on_tokens = tokenizer, last, on_tokens
        self._hooks: ExitStack | None = None

    def __enter__(self) -> Recording:
        if self._hooks is not None:
            raise RuntimeError("record: this context is entered already; to nest them make another one with ss.record")
        drop_compiled_code()
        recording, key, guard = self._new_recording(self._last), next(_new_key), BeamGuard()
        with ExitStack() as hooks:
            hooks.callback(guard.release)
            hooks.callback(_open_calls.close, key)
            has_read = self._follow_calls(hooks, recording, key, guard)
            for number, site in enumerate(self._sites):
                for stage in (Stage.BEFORE, Stage.AFTER):
                    hooks.callback(site.place.attach(_Watch(site.plan, number, stage, key, has_read).read, stage))
            self._hooks = hooks.pop_all()
        return recording

    def __exit__(self, *exception: object) -> None:
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None
            drop_compiled_code()

    def _new_recording(self, last: int | None) -> Recording:
        return Recording(self._columns, tokenizer=self._tokenizer, last=last)

    def _follow_calls(self, hooks: ExitStack, recording: Recording, key: int, guard: BeamGuard) -> Callable[[], None]:
        """Hooks around every call of the model: tokens are read before it, what was found is taken in after it.

        Returns what each site should call when it has read: where no hook tells the end of a call, the last of them
        ends it.
        """
        shows = self._source.shows
        names = argument_names(shows)
        calls, sequences = CallReader(names), SequenceTracker(itertools.count())

        def begin(args: tuple, kwargs: dict) -> None:
            _open_calls.found[key] = []
            with named_record():
                call = calls.read(args, kwargs, running_calls.arguments_around(key))
            _open_calls.call[key] = call, cache_in(named_arguments(names, args, kwargs))

        def end(output: object) -> None:
            found, (call, cache) = _open_calls.close(key)
            before, after = (self._activations(found, stage) for stage in (Stage.BEFORE, Stage.AFTER))
            for site, f in zip(self._sites, before, strict=True):
                call = call_of(call, f, site.place.path)
            assert call is not None  # there is a site
            rows, first_new = sequences.rows_of(call, cache)
            left = cache_in(output) if cache is None and isinstance(output, Mapping) else cache
            sequences.end_call(left)
            guard.watch(left)
            self._take(recording, RecordedCall(call, rows, first_new, before, after, self._order))

        before_calls(hooks, shows, begin)
        for module in self._source.around:
            note_arguments(hooks, module, key)
        if self._source.is_called_whole:
            after_calls(hooks, shows, end)
            return _do_nothing
        n_reads = 2 * len(self._sites)
        return lambda: end(None) if len(_open_calls.found[key]) == n_reads else None

    def _activations(self, found: list[Found], stage: Stage) -> list[Tensor]:
        """[..., M] of each site at one stage."""
        activations = []
        for number, site in enumerate(self._sites):
            here = [f for n, at, f, _ in found if n == number and at == stage]
            if len(here) != 1:
                raise RuntimeError(
                    f"record: {site.place.path} ran {len(here)} times in one call of the model; a place that is "
                    "recorded should run once"
                )
            activations += here
        return activations

    def _take(self, recording: Recording, call: RecordedCall) -> None:
        if self._last is None and self._on_tokens is None:
            recording.add(call.finished, call.size)
            return
        entries = call.finished()
        recording.add(entries, len(entries.tokens))
        if self._on_tokens is not None:
            alone = self._new_recording(None)
            alone.add(entries, len(entries.tokens))
            self._on_tokens(alone)


def _do_nothing() -> None:
    pass


class _Watch:
    """Reads one site at one stage."""

    def __init__(
        self, plan: SteeringPlan, number: int, stage: Stage, reader: int, has_read: Callable[[], None]
    ) -> None:
        self.plan = plan
        self.number = number
        self.stage = stage
        self.reader = reader
        self.has_read = has_read

    def read(self, h: Tensor) -> Tensor:
        """What the features do in h [..., D], which stays as it is."""
        found = _open_calls.found.get(self.reader)
        if found is None:  # outside a call of the model that was given
            return h
        if self.plan.device != h.device:
            self.plan = self.plan.to(h.device)
        if torch.compiler.is_compiling():
            found.append((self.number, self.stage, self._activations(h), None))
        else:
            f = self._known(h, found)
            f = self._activations(h) if f is None else f
            found.append((self.number, self.stage, f, h if self.stage == Stage.BEFORE else None))
        self.has_read()
        return h

    def _known(self, h: Tensor, found: list[Found]) -> Tensor | None:
        """What was read at the stage before, if nothing was edited in between."""
        for i, (number, stage, f, seen) in enumerate(found):
            if number == self.number and stage < self.stage:
                found[i] = number, stage, f, None
                return f if seen is h else None
        return None

    def _activations(self, h: Tensor) -> Tensor:
        # TransformerLens shows heads, [B, T, heads, d_head]; an SAE reads them all at once
        return ops.activations(h.detach().flatten(2) if h.dim() == 4 else h.detach(), self.plan)
