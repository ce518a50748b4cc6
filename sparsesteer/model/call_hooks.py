"""Hooks around whole calls of a model, which run outside compiled code."""

import sys
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn

from sparsesteer.model import running_calls
from sparsesteer.model.forward_calls import named_arguments
from sparsesteer.model.places import argument_names


def before_calls(hooks: ExitStack, module: nn.Module, run: Callable[[tuple, dict], None]) -> None:
    """Run a function before each call of a module, ahead of all hooks that are there, until ``hooks`` is closed."""

    # Compiled code would be specialised to one place in the sequence, and made again at every token.
    @torch.compiler.disable(reason="sparsesteer follows the sequence outside compiled code")
    def before(module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        if kwargs is not None:  # else another thread is registering or removing this hook just now
            run(args, kwargs)

    hooks.callback(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)


def after_calls(
    hooks: ExitStack, module: nn.Module, run: Callable[[object], None], *, also_if_raised: bool = False
) -> None:
    """Run a function with what each call of a module returns (None if it raised), behind all hooks that are there."""

    @torch.compiler.disable(reason="sparsesteer follows the sequence outside compiled code")
    def after(module: nn.Module, args: tuple, output: object) -> None:
        run(output)

    hooks.callback(module.register_forward_hook(after, always_call=also_if_raised).remove)


def note_arguments(hooks: ExitStack, module: nn.Module, key: running_calls.Key) -> None:
    """Keep what a module is called with while its calls run, for ``running_calls.arguments_around``."""
    names = argument_names(module)
    before_calls(
        hooks,
        module,
        lambda args, kwargs: running_calls.push_arguments(key, named_arguments(names, args, kwargs)),
    )
    after_calls(hooks, module, lambda output: running_calls.pop_arguments(key), also_if_raised=True)


def drop_compiled_code() -> None:
    """Compiled code has no guard on hooks that were not there: it would go on without ours, or with those removed."""
    convert_frame = sys.modules.get("torch._dynamo.convert_frame")
    if convert_frame is not None and convert_frame.input_codes.seen:
        torch.compiler.reset()
