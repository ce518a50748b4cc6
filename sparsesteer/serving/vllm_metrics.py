"""Figures of steering beside vLLM's own, at ``/metrics`` of its server.

What the front end sees is counted as it happens, by each of the server's processes. What lies in other processes, of
the core and the workers, is asked for when somebody reads ``/metrics``; every process then has the same figures, so
that these are gauges of which the most recent holds, also those that only ever rise.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

_FIGURES = {
    "specs": "Specs that requests may name.",
    "specs_resident": "Specs whose rows lie in the banks of the first worker.",
    "specs_in_use": "Specs that running requests use.",
    "requests_live": "Steered requests that wait or run.",
    "requests_waiting": "Steered requests that wait, for room for their spec or for their turn.",
    "spec_loads": "Times that a spec was written into the banks, since the start.",
    "spec_evictions": "Times that a spec made room for another one, since the start.",
    "steered_tokens": "Tokens steered by the first worker, since the start.",
    "unsteered_requests": "Requests that the worker could not steer, since the start; anything but 0 is a fault.",
}


def count_steered() -> None:
    """A request was let in by the front end."""
    _counter("steered_requests", "Requests with a spec that the front end let in.").inc()


def count_refused(reason: str) -> None:
    """A request was answered with an error."""
    _counter("refused_requests", "Requests that were refused, by reason.", "reason").labels(reason).inc()


def show(status: dict[str, Any]) -> None:
    """Figures of the first worker and the core, as ``sparsesteer_status`` gives them."""
    core = status["core"]
    values = {
        "specs": core["specs"],
        "specs_resident": status["resident"],
        "specs_in_use": core["in_use"],
        "requests_live": core["requests"],
        "requests_waiting": core["waiting"],
        "spec_loads": status["loads"],
        "spec_evictions": status["evictions"],
        "steered_tokens": status["steered_tokens"],
        "unsteered_requests": status["unsteered_requests"],
    }
    for name, value in values.items():
        _gauge(name, _FIGURES[name]).set(value)
    for reason, count in core["refused"].items():
        _gauge("core_refused_requests", "Requests that the core refused, by reason.", "reason").labels(reason).set(
            count
        )


class FreshFigures:
    """ASGI middleware: the figures are asked for before ``/metrics`` is read."""

    def __init__(self, app: Callable[..., Awaitable[None]], refresh: Callable[[], Awaitable[None]]) -> None:
        self._app = app
        self._refresh = refresh

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/metrics"):
            await self._refresh()
        await self._app(scope, receive, send)


@functools.cache
def _counter(name: str, text: str, *labels: str) -> Any:
    from prometheus_client import Counter

    return Counter(f"sparsesteer:{name}", text, labels)


@functools.cache
def _gauge(name: str, text: str, *labels: str) -> Any:
    from prometheus_client import Gauge

    return Gauge(f"sparsesteer:{name}", text, labels, multiprocess_mode="mostrecent")
