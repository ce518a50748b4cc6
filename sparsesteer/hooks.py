"""Steering a torch model while a ``with`` block runs."""

import itertools
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsesteer import ops, site_hooks
from sparsesteer.forward_calls import CallReader, ForwardCall
from sparsesteer.model_sites import ModelSites, Place, argument_names
from sparsesteer.plans import SteeringPlan
from sparsesteer.positions import Positions, check_strength, every_token, selector, special_token_ids, token_strengths
from sparsesteer.site import Site

SiteName = int | str | Site
# keys are SiteNames; Any, because a Mapping of SiteName would not take a dict[int, ...]
Plans = SteeringPlan | Mapping[Any, SteeringPlan | list[SteeringPlan]]


def steer(
    model: nn.Module,
    plan: Plans,
    strength: float | Tensor = 1.0,
    positions: Positions = "all",
    exclude_special_tokens: Iterable[int] | object | None = None,
) -> "Steering":
    """Steer a model inside a ``with`` block; outside of it the model is as it was, bit for bit.

        with ss.steer(model, plan, positions="generated") as steering:
            model.generate(**inputs)
            steering.strength = 2.0
            model.generate(**inputs)

    A call of the model that brings one token to a cache that is not empty brings a generated token; without a cache,
    so does one that repeats the prompt and is a token longer than the call before. Every other call brings a prompt,
    or more of one (a chunk of it, the next turn of a conversation). Speculative decoding checks several tokens in a
    call: there only "all" is right.

    Args:
        model: a transformers model (with one list of blocks), or any module whose places are named by path.
        plan: one plan, whose SAE knows its site; or {site: plan or list of plans}, where a site is a block's number
            (the residual after it), "blocks.3.hook_resid_pre" (the residual before it), "blocks.3.hook_resid_post",
            or a module's path (its output).
        strength: a number; or a tensor [B], one for each row; or [B, T], one for each token of the prompt, generated
            ones being left alone.
        positions: the tokens that are steered. Padding never is.
            "all"; "prompt"; "last_prompt", the last token of each row's prompt; "generated".
            A bool tensor [B, T] over the prompt as it enters the model, padding counted; no generated token.
            Whole numbers, places in each row's sequence, padding not counted, negative from the prompt's end; no
            generated token. Tokens that a cache already holds count, and stay as they are.
            A slice of the same places: with a stop it ends with the prompt, without one it goes on through the
            generated tokens.
        exclude_special_tokens: token ids that are left alone, or a tokenizer, for its ``all_special_ids``.

    B is the number of rows of the call, or a divisor of it: beams and returned sequences take their prompt's row.

    A model compiled by ``torch.compile`` is steered too. Dynamo would run code it compiled before the hooks came, or
    with hooks that are gone, so all compiled code of the process is dropped on entering and on leaving, and made anew
    at its next call; change ``steering.strength`` rather than enter again. With ``fullgraph=True`` give the compiled
    model itself.

    Raises:
        TypeError, ValueError: arguments that do not fit; a site that the model lacks; a plan of another width.
    """
    return Steering(model, plan, strength, positions, exclude_special_tokens)


class _Strengths(threading.local):
    """The strength of the forward call that runs in this thread, for every module whose calls are read.

    Global, because Dynamo compiles a tensor that it reaches through a module for one shape only.
    """

    def __init__(self) -> None:
        self.of_reader: dict[int, float | Tensor] = {}


_strengths = _Strengths()
_new_key = itertools.count()


class Steering:
    """What ``steer`` returns: a context that can be entered again after it was left."""

    def __init__(
        self, model: nn.Module, plan: Plans, strength: float | Tensor, positions: Positions, excluded: object
    ) -> None:
        sites = ModelSites.of(model)
        self._readers: dict[nn.Module, int] = {}  # the modules whose calls are read, each with its key
        self._edits: list[_SiteEdit] = []
        for site, each in _pairs(plan):
            place = sites.resolve(site)
            _check_width(place, each)
            key = self._readers.setdefault(sites.reader_of(place), next(_new_key))
            self._edits.append(_SiteEdit(each, place, key))
        self._select = selector(positions)
        self._excluded = special_token_ids(excluded)
        self._strength = check_strength(strength)
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
        with ExitStack() as hooks:
            for module, key in self._readers.items():
                hooks.callback(self._install_reader(module, key).remove)
                hooks.callback(_strengths.of_reader.pop, key, None)
            for edit in self._edits:
                hooks.callback(edit.install().remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None
            drop_compiled_code()

    def _install_reader(self, module: nn.Module, key: int) -> RemovableHandle:
        calls = CallReader(argument_names(module))

        def read_call(module: nn.Module, args: tuple, kwargs: dict) -> None:
            _strengths.of_reader[key] = self._strength_of(calls.read(args, kwargs))

        # Compiled code would be specialised to one place in the sequence, and made again at every token.
        opaque = torch.compiler.disable(read_call, reason="sparsesteer follows the sequence outside compiled code")
        return module.register_forward_pre_hook(opaque, with_kwargs=True)

    def _strength_of(self, call: ForwardCall | None) -> float | Tensor:
        if call is not None:
            return token_strengths(call, self._select, self._strength, self._excluded)
        if self._select is not every_token or self._excluded is not None or isinstance(self._strength, Tensor):
            raise ValueError(
                "steer: the model was called without input_ids or another tensor [B, T, ...], so its tokens cannot "
                "be told apart; use positions='all', a number as strength, and no exclude_special_tokens"
            )
        return self._strength


class _SiteEdit:
    """One plan at one place."""

    stage = site_hooks.Stage.EDIT

    def __init__(self, plan: SteeringPlan, place: Place, reader: int) -> None:
        self.plan = plan
        self.place = place
        self.reader = reader

    def install(self) -> RemovableHandle:
        return site_hooks.install(self.place, self)

    def after_forward(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self._steered(output)
        if type(output) is tuple and output and isinstance(output[0], Tensor):
            return (self._steered(output[0]), *output[1:])
        raise TypeError(
            f"steer: {self.place.path} returns {type(output).__name__}; the place of a plan should return a tensor, "
            "or a tuple that begins with one"
        )

    def before_forward(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (self._steered(args[0]), *args[1:]), kwargs
        name = argument_names(module)[0]
        return args, {**kwargs, name: self._steered(kwargs[name])}

    def _steered(self, h: Tensor) -> Tensor:
        strength = _strengths.of_reader.get(self.reader)
        if strength is None:
            raise RuntimeError(
                f"steer: {self.place.path} ran outside the model whose calls show its tokens; "
                "call the model that was given to ss.steer"
            )
        if self.plan.device != h.device:
            self.plan = self.plan.to(h.device)
        if isinstance(strength, Tensor):
            return ops.steer(h, self.plan, strength.to(h.device))
        return h if strength == 0 else ops.steer(h, self.plan, strength)


def drop_compiled_code() -> None:
    """Compiled code has no guard on hooks that were not there: it would go on without ours, or with those removed."""
    convert_frame = sys.modules.get("torch._dynamo.convert_frame")
    if convert_frame is not None and convert_frame.input_codes.seen:
        torch.compiler.reset()


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


def _check_width(place: Place, plan: SteeringPlan) -> None:
    read, written = plan.encoder.shape[1], plan.decoder.shape[1]
    if read != written:
        raise ValueError(f"steer: the plan reads {read} and writes {written} numbers a token; a hook needs one width")
    if place.width not in (None, read):
        raise ValueError(
            f"steer: the plan's SAE has width {read}, the model has width {place.width} at {place.path}; "
            "was the SAE made for this model?"
        )
