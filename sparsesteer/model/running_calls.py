"""The forward calls that run in each thread: how strongly their tokens are steered, and what was read so far."""

import itertools
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Key = int
new_key = itertools.count().__next__


class RunningCall:
    """One forward call of a model."""

    def __init__(self, strength: float | Tensor | None = None) -> None:
        self.strength = strength  # None until the call has shown its tokens
        self.read: dict[Key, Tensor] = {}  # what a transcoder's edit read, by the edit


class _Thread(threading.local):
    """Stacks by key: a call that a hook makes inside of another one is on top of it.

    Global, because Dynamo compiles a tensor that it reaches through a module for one shape only.
    """

    def __init__(self) -> None:
        self.calls: dict[Key, list[RunningCall]] = {}
        self.arguments: dict[Key, list[Mapping[str, Any]]] = {}  # of the modules around the one that is read


_thread = _Thread()


def current(key: Key) -> RunningCall | None:
    """The innermost call that runs in this thread."""
    stack = _thread.calls.get(key)
    return stack[-1] if stack else None


def push(key: Key, call: RunningCall) -> None:
    """A call begins."""
    _thread.calls.setdefault(key, []).append(call)


def restart(key: Key, call: RunningCall) -> None:
    """A call begins whose end will not be told; the one before is over."""
    _thread.calls[key] = [call]


def pop(key: Key) -> None:
    """A call ends; none may have begun, where the hooks came in its middle."""
    _pop(_thread.calls, key)


def forget(key: Key) -> None:
    """No call will come any more."""
    _thread.calls.pop(key, None)


def push_arguments(key: Key, given: Mapping[str, Any]) -> None:
    """A module around the one whose calls are read was called."""
    _thread.arguments.setdefault(key, []).append(given)


def pop_arguments(key: Key) -> None:
    """Its call ends."""
    _pop(_thread.arguments, key)


def arguments_around(key: Key) -> dict[str, Any]:
    """What the modules around were given, the inner ones first."""
    merged: dict[str, Any] = {}
    for given in _thread.arguments.get(key, ()):
        merged |= {name: value for name, value in given.items() if value is not None}
    return merged


def calls_of_this_thread() -> dict[Key, RunningCall]:
    """The innermost call by key."""
    return {key: stack[-1] for key, stack in _thread.calls.items()}


def _pop(stacks: dict[Key, list], key: Key) -> None:
    stack = stacks.get(key)
    if stack:
        stack.pop()
        if not stack:
            del stacks[key]
