"""Gradient checkpointing: what a backward pass computes again is steered as it was in its own forward call."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sparsesteer.model import running_calls

_FUNCTION = "_gradient_checkpointing_func"  # transformers' blocks give it what is to be run now and again later


@contextmanager
def followed_checkpoints(model: nn.Module) -> Iterator[None]:
    """Blocks that are checkpointed take the call they ran in along, to the backward pass and its thread."""
    modules = [module for module in model.modules() if _FUNCTION in vars(module)]
    for module in modules:
        _follow(module)
    try:
        yield
    finally:
        for module in modules:
            _let_go(module)


class _Following:
    """What stands in the place of a block's checkpoint function while contexts are open."""

    def __init__(self, checkpoint: Callable) -> None:
        self.checkpoint = checkpoint
        self.n_contexts = 0

    def __call__(self, run: Callable, *args: Any, **options: Any) -> Any:
        calls = running_calls.calls_of_this_thread()

        def run_in_its_call(*inputs: Any, **named: Any) -> Any:
            for key, call in calls.items():
                running_calls.push(key, call)
            try:
                return run(*inputs, **named)
            finally:
                for key in calls:
                    running_calls.pop(key)

        return self.checkpoint(run_in_its_call, *args, **options)


_lock = threading.Lock()
_followed: "weakref.WeakKeyDictionary[nn.Module, _Following]" = weakref.WeakKeyDictionary()


def _follow(module: nn.Module) -> None:
    with _lock:
        following = _followed.get(module)
        if following is None or getattr(module, _FUNCTION) is not following:
            following = _followed[module] = _Following(getattr(module, _FUNCTION))
            setattr(module, _FUNCTION, following)
        following.n_contexts += 1


def _let_go(module: nn.Module) -> None:
    with _lock:
        following = _followed.get(module)
        if following is None:
            return
        checkpoint = following.checkpoint
        following.n_contexts -= 1
        if following.n_contexts == 0:
            del _followed[module]
            if getattr(module, _FUNCTION, None) is following:  # else checkpointing was switched meanwhile
                setattr(module, _FUNCTION, checkpoint)
