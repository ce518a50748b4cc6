"""Which places of a request's sequence are steered, counted from its prompt's length.

vLLM feeds a sequence in chunks, and after a preemption feeds generated tokens again as if they were a prompt. Only
positions against the prompt's length tell what a token is; the length of a chunk does not.
"""

from collections.abc import Sequence

Window = tuple[int, int]  # from the first place on, up to the second, which is not in it

END = 2**31 - 1  # behind every sequence


def windows(positions: str | slice | Sequence[int], prompt_length: int) -> tuple[Window, ...]:
    """The steered places of a sequence, in rising order, none twice; meaning as in ``ss.steer``.

    Raises:
        ValueError: an index outside of the prompt.
    """
    if isinstance(positions, str):
        named = {
            "all": (0, END),
            "prompt": (0, prompt_length),
            "last_prompt": (prompt_length - 1, prompt_length),
            "generated": (prompt_length, END),
        }
        return (named[positions],)
    if isinstance(positions, slice):
        first = 0 if positions.start is None else _from_start(positions.start, prompt_length)
        last = END if positions.stop is None else min(_from_start(positions.stop, prompt_length), prompt_length)
        return ((first, last),) if first < last else ()
    for index in positions:
        if not -prompt_length <= index < prompt_length:
            raise ValueError(f"positions: index {index} is outside a prompt of {prompt_length} tokens")
    places = sorted({_from_start(index, prompt_length) for index in positions})
    return tuple((place, place + 1) for place in places)


def within(steered: tuple[Window, ...], start: int, stop: int) -> tuple[Window, ...]:
    """The part of the windows that lies in [start, stop)."""
    cut = ((max(first, start), min(last, stop)) for first, last in steered)
    return tuple((first, last) for first, last in cut if first < last)


def _from_start(place: int, prompt_length: int) -> int:
    return place if place >= 0 else max(prompt_length + place, 0)
