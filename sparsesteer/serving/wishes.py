"""What a request asks for: "polite", "polite@0.8", or a spec's id."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

KEY = "sparsesteer"  # in a request's extra_args, which the OpenAI server takes as vllm_xargs
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Refusal(ValueError):
    """A request that cannot be steered as it asks; ``reason`` is one word for those who count."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def refusing(reason: str) -> Iterator[None]:
    """What is wrong here is wrong with a request, for this reason."""
    try:
        yield
    except ValueError as error:
        raise Refusal(reason, str(error)) from error


def unknown_spec(name: str) -> Refusal:
    """To be raised for a name or an id that means nothing."""
    return Refusal("unknown", f"no spec {name!r} is known; GET /v1/sparsesteer/specs lists them")


@dataclass(frozen=True)
class Wish:
    """A spec by name or id, and the strength that multiplies its own."""

    name: str
    strength: float = 1.0


def parse_wish(value: Any) -> Wish:
    """Raises Refusal for anything but "NAME" or "NAME@STRENGTH"."""
    if not isinstance(value, str):
        raise Refusal("malformed", f"{KEY} should be text, 'NAME' or 'NAME@STRENGTH', got {type(value).__name__}")
    name, at, number = value.partition("@")
    try:
        strength = float(number) if at else 1.0
    except ValueError:
        strength = float("nan")
    if not _NAME.fullmatch(name) or not abs(strength) < float("inf"):
        message = f"{KEY} should be 'NAME' or 'NAME@STRENGTH', a finite number, got {value[:100]!r}"
        raise Refusal("malformed", message)
    return Wish(name, strength)


def check_name(name: Any) -> str:
    """A name for a spec. Raises ValueError for one that could not be written in a request or as a file."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a spec's name has up to 64 letters, digits, '.', '_' and '-', got {name!r}")
    return name


def wish_of(sampling_params: Any) -> Any:
    """What stands in a request's parameters, unread; None for a request that is not steered."""
    extra = getattr(sampling_params, "extra_args", None)
    return extra.get(KEY) if extra else None
