"""Answers to prompts whose last token has the state of another prompt's: what a layer's state decides."""

from collections.abc import Sequence

from torch import Tensor

from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.fitting import places_of


def patched(answerer: Answerer, layer: int, prompts: Sequence[str], donors: Sequence[str]) -> list[str]:
    """Answers to prompts whose last token has a donor's state behind a block."""
    place = places_of(answerer.model, [layer])[layer]
    new = answerer.last_states(donors, {layer: place})[layer]
    pending = [new]

    def write(h: Tensor) -> Tensor:
        if pending:  # the prompts; generated tokens come in later calls
            h = h.clone()
            h[:, -1] = pending.pop().to(h)
        return h

    detach = place.attach(write)
    try:
        return answerer.together(prompts)
    finally:
        detach()
