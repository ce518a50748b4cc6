"""How much of an engine's time is spent in our code: in our wrappers, without what these call of the engine."""

from collections.abc import Callable
from time import process_time
from typing import Any
from unittest import mock


class OwnTime:
    """Processor seconds in functions that are ours, without those in functions of others that they call."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def ours(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time counts."""
        return self._clocked(function, 1)

    def theirs(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """One that ours call, whose time does not count."""
        return self._clocked(function, -1)

    def _clocked(self, function: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            started = process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += sign * (process_time() - started)

        return clocked


def watch_plugin(clock: OwnTime) -> None:
    """From here on a clock runs around everything that the plugin wraps; before vLLM loads its plugins."""
    from sparsesteer.serving import seams, vllm_worker

    wrap, steer_block = seams.wrap, vllm_worker.steer_block

    def clocked_wrap(place: str, around: Callable[..., Any]) -> None:
        wrap(place, clock.ours(lambda original, *args, **kwargs: around(clock.theirs(original), *args, **kwargs)))

    def clocked_steer_block(block: Any, *args: Any, **kwargs: Any) -> None:
        block.forward = clock.theirs(block.forward)
        steer_block(block, *args, **kwargs)
        block.forward = clock.ours(block.forward)

    mock.patch.object(seams, "wrap", clocked_wrap).start()
    mock.patch.object(vllm_worker, "steer_block", clocked_steer_block).start()
