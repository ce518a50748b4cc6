"""Steering a torch model while a ``with`` block runs."""

import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from sparsesteer.model import running_calls
from sparsesteer.model.call_hooks import after_calls, before_calls, drop_compiled_code, note_arguments
from sparsesteer.model.checkpointing import followed_checkpoints
from sparsesteer.model.forward_calls import CallReader, ForwardCall
from sparsesteer.model.places import Place, argument_names
from sparsesteer.model.positions import Positions, check_strength, every_token, exclusion, selector, token_strengths
from sparsesteer.model.running_calls import RunningCall
from sparsesteer.model.sites import CallSource, ModelSites, SiteName
from sparsesteer.plans import SteeringPlan
from sparsesteer.site_edits import SiteEdit

# keys are SiteNames; Any, because a Mapping of SiteName would not take a dict[int, ...]
Plans = SteeringPlan | Mapping[Any, SteeringPlan | list[SteeringPlan]]


def steer(
    model: nn.Module,
    plan: Plans,
    strength: float | Tensor = 1.0,
    positions: Positions = "all",
    exclude_special_tokens: Iterable[int] | object | None = None,
    this_thread_only: bool = False,
) -> "Steering":
    """Steer a model inside a ``with`` block; outside of it the model is as it was, bit for bit.

        with ss.steer(model, plan, positions="generated") as steering:
            model.generate(**inputs)
            steering.strength = 2.0
            model.generate(**inputs)

    A call of the model that brings one token to a cache that is not empty brings a generated token; without a cache,
    so does one that repeats the prompt and is a token longer than the call before. The candidates that assisted
    generation checks in one call are generated tokens too. Every other call brings a prompt, or more of one (a chunk
    of it, the next turn of a conversation). ``docs/models.md`` has the models, hook points, caches and runtimes.

    Args:
        model: a transformers model (with one list of blocks), one of TransformerLens, or any module whose places are
            named by path.
        plan: one plan, whose SAE knows its site; or {site: plan or list of plans}, where a site is a block's number
            (the residual after it), a hook point of TransformerLens ("blocks.3.hook_mlp_out"), or a module's path
            (its output; with ".input" behind the path its input). A transcoder's plan reads at one place and writes
            at another: its site is a ``Site`` with ``hook_name`` and ``hook_name_out``.
        strength: a number; or a tensor [B], one for each row; or [B, T], one for each token of the prompt, generated
            ones being left alone.
        positions: the tokens that are steered. Padding never is.
            "all"; "prompt"; "last_prompt", the last token of each row's prompt; "generated".
            A bool tensor [B, T] over the prompt as it enters the model, padding counted; no generated token.
            Whole numbers, places in each row's sequence, padding not counted, negative from the prompt's end; no
            generated token. Tokens that a cache already holds count, and stay as they are.
            A slice of the same places: with a stop it ends with the prompt, without one it goes on through the
            generated tokens.
        exclude_special_tokens: token ids that are left alone; or a tokenizer, for its ``all_special_ids``; or
            ``template_tokens``, for them and all else that a chat template adds.
        this_thread_only: steer the calls of the thread that enters the context, which may come and go while other
            threads use the model; else the calls of all threads, which should not be under way at that moment.

    B is the number of rows of the call, or a divisor of it: beams and returned sequences take their prompt's row.

    A model compiled by ``torch.compile`` is steered too. Dynamo would run code it compiled before the hooks came, or
    with hooks that are gone, so all compiled code of the process is dropped on entering and on leaving, and made anew
    at its next call; change ``steering.strength`` rather than enter again. With ``fullgraph=True`` give the compiled
    model itself.

    Raises:
        TypeError, ValueError: arguments that do not fit; a site that the model lacks; a plan of another width.
    """
    return Steering(model, plan, strength, positions, exclude_special_tokens, this_thread_only)


class Steering:
    """What ``steer`` returns: a context that can be entered again after it was left."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plans,
        strength: float | Tensor,
        positions: Positions,
        excluded: object,
        this_thread_only: bool,
    ) -> None:
        sites = ModelSites.of(model)
        self._model = sites.root
        self._sources: dict[nn.Module, tuple[int, CallSource]] = {}  # by the module that shows the calls
        self._edits: list[SiteEdit] = []
        for site, each in _pairs(plan):
            read, written = sites.read_and_written(site)
            _check_width(read, written, each)
            source = sites.source_of(written)
            key, _ = self._sources.setdefault(source.shows, (running_calls.new_key(), source))
            self._edits.append(SiteEdit(each, read, written, key))
        self._select = selector(positions)
        self._excluded = exclusion(excluded)
        self._strength = check_strength(strength)
        self._this_thread_only = this_thread_only
        self._hooks: ExitStack | None = None

    @property
    def strength(self) -> float | Tensor:
        """What the edits are multiplied by; may be set at any time, and holds from the model's next call on."""
        return self._strength

    @strength.setter
    def strength(self, value: float | Tensor) -> None:
        self._strength = check_strength(value)

    def __enter__(self) -> "Steering":
        if self._hooks is not None:
            raise RuntimeError("steer: this context is entered already; to nest them make another one with ss.steer")
        drop_compiled_code()
        thread = threading.get_ident() if self._this_thread_only else None
        with ExitStack() as hooks:
            hooks.enter_context(followed_checkpoints(self._model))
            for edit in self._edits:
                edit.attach(hooks, thread)
            for key, source in self._sources.values():
                self._read_calls(hooks, source, key, thread)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None
            drop_compiled_code()

    def _read_calls(self, hooks: ExitStack, source: CallSource, key: int, thread: int | None) -> None:
        calls = CallReader(argument_names(source.shows))

        def read(args: tuple, kwargs: dict) -> None:
            call = running_calls.current(key)
            if call is not None and thread in (None, threading.get_ident()):
                call.strength = self._strength_of(calls.read(args, kwargs, running_calls.arguments_around(key)))

        before_calls(hooks, source.shows, read)
        if self._tells_tokens_apart:
            for module in source.around:
                note_arguments(hooks, module, key)
        unread = None if thread is None else 0.0  # calls of other threads are not read, and not steered
        if source.is_called_whole:
            before_calls(hooks, source.shows, lambda args, kwargs: running_calls.push(key, RunningCall(unread)))
            after_calls(hooks, source.shows, lambda output: running_calls.pop(key), also_if_raised=True)
        else:
            before_calls(hooks, source.shows, lambda args, kwargs: running_calls.restart(key, RunningCall(unread)))
            hooks.callback(running_calls.forget, key)

    @property
    def _tells_tokens_apart(self) -> bool:
        return self._select is not every_token or self._excluded is not None or isinstance(self._strength, Tensor)

    def _strength_of(self, call: ForwardCall | None) -> float | Tensor:
        if call is not None:
            return token_strengths(call, self._select, self._strength, self._excluded)
        if self._tells_tokens_apart:
            raise ValueError(
                "steer: the model was called without input_ids or another tensor [B, T, ...], so its tokens cannot "
                "be told apart; use positions='all', a number as strength, and no exclude_special_tokens"
            )
        return self._strength


def _pairs(plan: object) -> list[tuple[SiteName, SteeringPlan]]:
    """(site, plan) in the order given."""
    if isinstance(plan, SteeringPlan):
        return [(plan.site, plan)]
    if not isinstance(plan, Mapping):
        raise TypeError(f"steer: plan should be a SteeringPlan or {{site: plan}}, got {type(plan).__name__}")
    pairs = [(site, each) for site, some in plan.items() for each in (some if isinstance(some, list) else [some])]
    if not pairs:
        raise ValueError("steer: no plan was given")
    for site, each in pairs:
        if not isinstance(each, SteeringPlan):
            raise TypeError(f"steer: at {site} should be a SteeringPlan or a list of them, got {type(each).__name__}")
    return pairs


def _check_width(read: Place, written: Place, plan: SteeringPlan) -> None:
    n_read, n_written = plan.encoder.shape[1], plan.decoder.shape[1]
    if read is written and n_read != n_written:
        raise ValueError(
            f"steer: the plan reads {n_read} and writes {n_written} numbers a token, which no one place has; a "
            "transcoder's plan is given with two: ss.steer(model, {ss.Site(hook_name=..., hook_name_out=...): plan})"
        )
    for place, width in ((read, n_read), (written, n_written)):
        if place.width not in (None, width):
            raise ValueError(
                f"steer: the plan's SAE has width {width}, the model has width {place.width} at {place.path}; "
                "was the SAE made for this model?"
            )
