"""Recording what features do while a model runs."""

import itertools
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsesteer import ops, site_hooks
from sparsesteer.forward_calls import CallReader, ForwardCall
from sparsesteer.hooks import drop_compiled_code
from sparsesteer.model_sites import argument_names
from sparsesteer.recorded_calls import RecordedCall, call_of
from sparsesteer.recording import Recording
from sparsesteer.sae import SAE
from sparsesteer.sequences import BeamGuard, SequenceTracker
from sparsesteer.site_hooks import Stage
from sparsesteer.watched import Features, WatchedSite, named_record, order_of, watched_sites

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
        self._reader, self._sites = watched_sites(model, sae, features)
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
            for handle in self._install_reader(recording, key, guard):
                hooks.callback(handle.remove)
            for number, site in enumerate(self._sites):
                for stage in (Stage.BEFORE, Stage.AFTER):
                    hooks.callback(site_hooks.install(site.place, _Watch(site, number, stage, key)).remove)
            self._hooks = hooks.pop_all()
        return recording

    def __exit__(self, *exception: object) -> None:
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None
            drop_compiled_code()

    def _new_recording(self, last: int | None) -> Recording:
        return Recording(self._columns, tokenizer=self._tokenizer, last=last)

    def _install_reader(self, recording: Recording, key: int, guard: BeamGuard) -> list[RemovableHandle]:
        """Hooks around every call of the model: tokens are read before it, what was found is taken in after it."""
        names = argument_names(self._reader)
        calls, sequences = CallReader(names), SequenceTracker(itertools.count())

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            _open_calls.found[key] = []
            with named_record():
                call = calls.read(args, kwargs)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            _open_calls.call[key] = call, given.get("past_key_values")

        def end(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            found, (call, cache) = _open_calls.close(key)
            before, after = (self._activations(found, stage) for stage in (Stage.BEFORE, Stage.AFTER))
            for site, f in zip(self._sites, before, strict=True):
                call = call_of(call, f, site.place.path)
            assert call is not None  # there is a site
            rows, first_new = sequences.rows_of(call, cache)
            left = getattr(output, "past_key_values", None) if cache is None else cache
            sequences.end_call(left)
            guard.watch(left)
            self._take(recording, RecordedCall(call, rows, first_new, before, after, self._order))

        # Compiled code would be specialised to one place in the sequence, and made again at every token.
        why = "sparsesteer follows the sequence outside compiled code"
        return [
            self._reader.register_forward_pre_hook(torch.compiler.disable(begin, reason=why), with_kwargs=True),
            self._reader.register_forward_hook(torch.compiler.disable(end, reason=why), with_kwargs=True),
        ]

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


class _Watch:
    """Reads one site at one stage."""

    def __init__(self, site: WatchedSite, number: int, stage: Stage, reader: int) -> None:
        self.site = site
        self.plan = site.plan
        self.number = number
        self.stage = stage
        self.reader = reader

    def before_forward(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._read(args[0] if args else kwargs[argument_names(module)[0]])

    def after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        if type(output) is tuple and output:
            output = output[0]
        if not isinstance(output, Tensor):
            raise TypeError(
                f"record: {self.site.place.path} returns {type(output).__name__}; a place that is recorded should "
                "return a tensor, or a tuple that begins with one"
            )
        self._read(output)

    def _read(self, h: Tensor) -> None:
        found = _open_calls.found.get(self.reader)
        if found is None:  # outside a call of the model that was given
            return
        if self.plan.device != h.device:
            self.plan = self.plan.to(h.device)
        if torch.compiler.is_compiling():
            found.append((self.number, self.stage, ops.activations(h.detach(), self.plan), None))
            return
        known = None
        for i, (number, stage, f, seen) in enumerate(found):
            if number == self.number and stage < self.stage:
                found[i] = number, stage, f, None
                known = f if seen is h else None  # nothing was edited in between
        f = ops.activations(h.detach(), self.plan) if known is None else known
        found.append((self.number, self.stage, f, h if self.stage == Stage.BEFORE else None))
