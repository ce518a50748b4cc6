"""A model answers conflict prompts greedily; its states at the last token of each prompt are caught on the way."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer.generation import as_text
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.model.places import Place, Stage

_SAMPLED = 16  # numbers of each parameter that tell models apart


class Answerer:
    """One model and tokenizer, with the places whose states are read."""

    def __init__(self, model: Any, tokenizer: Any, places: Mapping[Any, Place], max_new_tokens: int) -> None:
        if not callable(getattr(model, "generate", None)):
            raise TypeError(
                f"SPARE: the model should be one of transformers that generates, got {type(model).__name__}"
            )
        if model.training:
            raise ValueError("SPARE: the model is in training mode, where dropout changes answers; call model.eval()")
        self.model, self.tokenizer, self.places = model, tokenizer, places
        self.max_new_tokens = max_new_tokens
        self.device = next(model.parameters()).device
        self.padding = _first_known(tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.stops = _stops(model, tokenizer)

    @torch.no_grad()
    def answers(
        self, conflicts: Sequence[Conflict], options: Mapping[str, Any] | None = None
    ) -> tuple[list[str], dict[Any, Tensor]]:
        """(the first line of each answer, states [B, D] by site), of one batch.

        Args:
            options: of ``model.generate``, besides those of greedy answers.

        Raises:
            RuntimeError: a place that does not see the prompts in one call.
        """
        return self.read(self.begun([conflict.prompt for conflict in conflicts]), options or {})

    def prepare(self, prompts: Sequence[str]) -> None:
        """What can be done for a batch before it is begun, and before a steering is entered: nothing here."""

    def begun(self, prompts: Sequence[str]) -> "Begun":
        """A batch, to go on from once."""
        return Begun(*self.padded(prompts))

    @torch.no_grad()
    def read(self, batch: "Begun", options: Mapping[str, Any]) -> tuple[list[str], dict[Any, Tensor]]:
        """(the first line of what follows each prompt, states [B, D] by site).

        Raises:
            RuntimeError: a place that does not see the tokens that are not cached in one call.
        """
        states: dict[Any, Tensor] = {}
        seen = len(batch.ids), batch.ids.shape[1] - batch.n_cached
        with ExitStack() as hooks:
            for site, place in self.places.items():
                hooks.callback(place.attach(_Reader(states, site, place.path, seen).read, Stage.AFTER))
            lines = self._written(batch, options)
        for site, place in self.places.items():
            if site not in states:
                raise RuntimeError(f"SPARE: {place.path} did not run while the model answered")
        return lines, states

    def _written(self, batch: "Begun", options: Mapping[str, Any]) -> list[str]:
        greedily = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "pad_token_id": self.padding,
            "eos_token_id": self.stops or None,
        }
        if batch.cache is not None:
            greedily["past_key_values"] = batch.cache
        whole = self.model.generate(batch.ids, attention_mask=batch.mask, **(greedily | dict(options)))
        new = whole[:, batch.ids.shape[1] :].tolist()
        return [as_text(self.tokenizer, each).split("\n")[0].strip() for each in new]

    @torch.no_grad()
    def losses(self, conflict: Conflict) -> tuple[float, float]:
        """Mean negative log-likelihood of the whole text, with the substituted and with the original answer."""
        found = []
        for answer in (conflict.sub_answer[0], conflict.org_answer[0]):
            ids = torch.tensor([self.tokenizer(conflict.answered(answer))["input_ids"]], device=self.device)
            logits = self.model(input_ids=ids).logits[0, :-1].float()
            found.append(float(nn.functional.cross_entropy(logits, ids[0, 1:])))
        return found[0], found[1]

    def fingerprint(self) -> str:
        """Tells models apart by some numbers out of every parameter."""
        sha = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            flat = parameter.detach().reshape(-1)
            picked = flat[torch.arange(_SAMPLED, device=flat.device) * (len(flat) - 1) // (_SAMPLED - 1)]
            sha.update(repr((name, tuple(parameter.shape), str(parameter.dtype))).encode())
            sha.update(picked.double().cpu().numpy().tobytes())
        return sha.hexdigest()

    def padded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids, attention mask) [B, T] of prompts, padded on the left."""
        rows = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[self.padding] * (width - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        return ids, mask


@dataclass(frozen=True, eq=False)
class Begun:
    """Prompts [B, T], padded on the left; their first columns may be in a cache."""

    ids: Tensor
    mask: Tensor
    cache: Any = None
    n_cached: int = 0


class _Reader:
    """Keeps the last column of what passes a place first: the prompts, padded on the left."""

    def __init__(self, states: dict[Any, Tensor], site: Any, path: str, shape: Sequence[int]) -> None:
        self.states, self.site, self.path, self.shape = states, site, path, tuple(shape)

    def read(self, h: Tensor) -> Tensor:
        if self.site not in self.states:
            if tuple(h.shape[:2]) != self.shape:
                raise RuntimeError(
                    f"SPARE: {self.path} saw {list(h.shape[:2])} tokens of prompts of {list(self.shape)}; only places "
                    "that see every token of a prompt in one call can be read"
                )
            last = h[:, -1].detach().flatten(1)  # TransformerLens shows heads
            self.states[self.site] = last.to("cpu", torch.promote_types(last.dtype, torch.float32), copy=True)
        return h


def _stops(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the model's own, and the line break, behind which nothing is read."""
    given = getattr(model.generation_config, "eos_token_id", None)
    stops = list(given) if isinstance(given, list | tuple) else [given]
    for text in ("\n", "\n\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and "\n" in tokenizer.decode(ids[-1:]):
            stops.append(ids[-1])
    return sorted({stop for stop in stops if stop is not None})


def _first_known(*ids: int | None) -> int:
    return next(each for each in ids if each is not None)
