"""A place in a model's modules, and how the tensor that passes it is read and replaced."""

import inspect
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]
Side = Literal["output", "input", "stream", "normalized"]

_COMPILED_CHILD = "_orig_mod"


class Stage(IntEnum):
    """The order of what is attached to one place; at one stage an outer context comes before an inner one."""

    BEFORE = 0  # reads what enters
    EDIT = 1
    AFTER = 2  # reads what the edits left


@dataclass(frozen=True)
class Place:
    """Where a tensor passes: the output of a module, or its input.

    ``stream`` is an input that the caller goes on with, the residual stream inside a block; it is changed in place.
    ``normalized`` is what a norm makes of its input before its weight and bias; it can only be read.
    """

    path: str
    module: nn.Module
    side: Side = "output"
    width: int | None = None  # numbers a token, where that is known
    read_only: bool = False

    def attach(self, change: Change, stage: Stage = Stage.EDIT) -> Callable[[], None]:
        """Let ``change`` replace the tensor in every call of the module; what is returned takes it away again.

        All that is attached runs by stage, and then in the order in which it came, before the hooks of others that are
        there already: these see what the model goes on with.
        """
        at_exit = self.side == "output"
        entry = _Attached(self.side, change, stage)
        with _lock:
            hooks = _hooks.setdefault(self.module, {})
            if at_exit not in hooks:
                hooks[at_exit] = _Hook(self.path, self.module, at_exit)
            hooks[at_exit].changes = tuple(sorted((*hooks[at_exit].changes, entry), key=lambda each: each.stage))

        def detach() -> None:
            with _lock:
                hook = hooks[at_exit]
                hook.changes = tuple(each for each in hook.changes if each is not entry)
                if not hook.changes:
                    hook.handle.remove()
                    del hooks[at_exit]

        return detach


@dataclass(frozen=True, eq=False)
class _Attached:
    side: Side
    change: Change
    stage: Stage


class _Hook:
    """The one hook of ours at a module's entrance or exit; one for all, so that their order never wavers.

    The tuple of changes is replaced and never altered: a call in another thread sees the old ones or the new ones.
    """

    def __init__(self, path: str, module: nn.Module, at_exit: bool) -> None:
        self.path = path
        self.changes: tuple[_Attached, ...] = ()
        if at_exit:
            self.handle = module.register_forward_hook(self.after_forward, prepend=True)
        else:
            self.first_argument = next(iter(argument_names(module)), "")
            self.handle = module.register_forward_pre_hook(self.before_forward, prepend=True, with_kwargs=True)

    def after_forward(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self._changed(output, "output")
        if type(output) is tuple and output and isinstance(output[0], Tensor):
            return (self._changed(output[0], "output"), *output[1:])
        raise TypeError(
            f"{self.path} returns {type(output).__name__}; what is steered or recorded should return a tensor, "
            "or a tuple that begins with one"
        )

    def before_forward(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> tuple[tuple, dict] | None:
        if kwargs is None:  # another thread is registering or removing this hook just now
            return None
        if args:
            return (self._entered(module, args[0]), *args[1:]), kwargs
        name = self.first_argument if self.first_argument in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: self._entered(module, kwargs[name])}

    def _entered(self, module: nn.Module, h: Tensor) -> Tensor:
        if self._has("stream"):
            # Autograd keeps what the change read; writing over it would spoil the backward pass.
            before = h.clone() if torch.is_grad_enabled() and h.requires_grad else h
            after = self._changed(before, "stream")
            if after is not before:
                h.copy_(after)
        h = self._changed(h, "input")
        if self._has("normalized"):
            self._changed(normalized(module, h), "normalized")
        return h

    def _has(self, side: Side) -> bool:
        return any(each.side == side for each in self.changes)

    def _changed(self, h: Tensor, side: Side) -> Tensor:
        for each in self.changes:
            if each.side == side:
                h = each.change(h)
        return h


_lock = threading.Lock()
_hooks: "weakref.WeakKeyDictionary[nn.Module, dict[bool, _Hook]]" = weakref.WeakKeyDictionary()


def normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """x [..., D] as a LayerNorm or RMSNorm makes it before its weight and bias, computed in fp32 or fp64."""
    eps: Any = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(norm, nn.LayerNorm):
        y = y - y.mean(-1, keepdim=True)
    return (y / (y.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)


def without_compile_wrapper(module: nn.Module) -> nn.Module:
    """The module behind ``torch.compile(module)``, or the module itself."""
    return module._modules.get(_COMPILED_CHILD) or module


def without_compile_wrappers(path: str) -> str:
    """A module's path as if nothing were wrapped."""
    return ".".join(part for part in path.split(".") if part != _COMPILED_CHILD)


def argument_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the arguments of a module's forward, in order."""
    return tuple(inspect.signature(without_compile_wrapper(module).forward).parameters)
