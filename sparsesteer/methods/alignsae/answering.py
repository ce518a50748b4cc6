"""A model answers prompts greedily, many at a time, and shows its states at their last tokens."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from sparsesteer.generation import as_text
from sparsesteer.methods.reading import LastColumn, check_generates, left_padded, padding_of, stops_of
from sparsesteer.model.places import Place, Stage


class Answerer:
    """A model of transformers with its tokenizer.

    Args:
        max_new_tokens: of an answer, whose first line alone counts.

    Raises:
        TypeError, ValueError: something else; a model in training mode.
    """

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int = 12) -> None:
        check_generates("AlignSAE", model)
        if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
            raise ValueError(f"AlignSAE: max_new_tokens should be a positive whole number, got {max_new_tokens!r}")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.device = next(model.parameters()).device
        self.padding, self.stops = padding_of(tokenizer), stops_of(model, tokenizer)

    def answers(self, prompts: Sequence[str], batch_size: int = 64) -> list[str]:
        """The first line of what follows each prompt."""
        found: dict[int, str] = {}
        for places in self._batches(prompts, batch_size):
            answers = self.together([prompts[place] for place in places])
            found |= dict(zip(places, answers, strict=True))
        return [found[place] for place in range(len(prompts))]

    def together(self, prompts: Sequence[str]) -> list[str]:
        """The same in one batch, whose rows are the prompts in order."""
        ids, mask = self._padded(prompts)
        with torch.no_grad():
            whole = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.padding,
                eos_token_id=self.stops or None,
            )
        new = whole[:, ids.shape[1] :].tolist()
        return [as_text(self.tokenizer, each).split("\n")[0].strip() for each in new]

    def last_states(self, prompts: Sequence[str], places: Mapping[Any, Place]) -> dict[Any, Tensor]:
        """fp32 [n, D] by site, on the CPU: what passes each place at the last token of the prompts.

        Raises:
            RuntimeError: a place that does not see every token in one call.
        """
        ids, mask = self._padded(prompts)
        states: dict[Any, Tensor] = {}
        with torch.no_grad(), ExitStack() as hooks:
            for site, place in places.items():
                hooks.callback(
                    place.attach(LastColumn("AlignSAE", states, site, place.path, ids.shape).read, Stage.AFTER)
                )
            self.model(input_ids=ids, attention_mask=mask, **self._positions(mask), use_cache=False)
        absent = [place.path for site, place in places.items() if site not in states]
        if absent:
            raise RuntimeError(f"AlignSAE: {absent[0]} did not run while the model read the prompts")
        return {site: state.float() for site, state in states.items()}

    def first_tokens(self, answers: Iterable[str]) -> list[int]:
        """The token that each answer begins with, behind a space."""
        return [self.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"][0] for answer in answers]

    def _batches(self, prompts: Sequence[str], batch_size: int) -> Iterator[list[int]]:
        """Places of prompts of like length together, so that little is padded."""
        lengths = [len(self.tokenizer(prompt)["input_ids"]) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]

    def _padded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids, attention mask) [B, T], padded on the left."""
        rows = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        if not all(rows):
            raise ValueError("AlignSAE: a prompt is empty: it has no tokens")
        return left_padded(rows, self.padding, self.device)

    def _positions(self, mask: Tensor) -> dict[str, Tensor]:
        """Positions that padding does not count in, where the model takes them; ``generate`` makes its own."""
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return {}
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
