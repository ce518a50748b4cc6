"""How methods read a model: prompts padded on the left, what ends an answer, states at the last token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LastColumn:
    """Keeps the last column [B, D], on the CPU and in fp32 at least, of what passes a place first.

    Args:
        whose: name of the method, for errors.
        states: where it is put, under ``site``.
        path: of the place, for errors.
        shape: (B, T) of the tokens that should be seen in one call.
    """

    def __init__(self, whose: str, states: dict[Any, Tensor], site: Any, path: str, shape: Sequence[int]) -> None:
        self.whose, self.states, self.site, self.path, self.shape = whose, states, site, path, tuple(shape)

    def read(self, h: Tensor) -> Tensor:
        """For ``Place.attach``. Raises RuntimeError for a place that does not see every token in one call."""
        if self.site not in self.states:
            if tuple(h.shape[:2]) != self.shape:
                raise RuntimeError(
                    f"{self.whose}: {self.path} saw {list(h.shape[:2])} tokens of prompts of {list(self.shape)}; only "
                    "places that see every token of a prompt in one call can be read"
                )
            last = h[:, -1].detach().flatten(1)  # TransformerLens shows heads
            self.states[self.site] = last.to("cpu", torch.promote_types(last.dtype, torch.float32), copy=True)
        return h


def check_generates(whose: str, model: Any) -> None:
    """Raises TypeError for something else than a model of transformers that generates, ValueError in training mode."""
    if not callable(getattr(model, "generate", None)):
        raise TypeError(f"{whose}: the model should be one of transformers that generates, got {type(model).__name__}")
    if model.training:
        raise ValueError(f"{whose}: the model is in training mode, where dropout changes answers; call model.eval()")


def padding_of(tokenizer: Any) -> int:
    """The token that rows are filled up with."""
    return next(each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if each is not None)


def left_padded(
    rows: Sequence[Sequence[int]], padding: int, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """(ids, attention mask) [B, T] of the tokens of prompts."""
    width = max(map(len, rows))
    ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def stops_of(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the model's own, and the line break, behind which nothing is read."""
    given = getattr(model.generation_config, "eos_token_id", None)
    stops = list(given) if isinstance(given, list | tuple) else [given]
    for text in ("\n", "\n\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and "\n" in tokenizer.decode(ids[-1:]):
            stops.append(ids[-1])
    return sorted({stop for stop in stops if stop is not None})
