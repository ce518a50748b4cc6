"""A model answers conflict prompts greedily; its states at the last token of each prompt are caught on the way."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer.generation import as_text
from sparsesteer.methods.reading import LastColumn, check_generates, left_padded, padding_of, stops_of
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.model.places import Place, Stage

_SAMPLED = 16  # numbers of each parameter that tell models apart


class Answerer:
    """One model and tokenizer, with the places whose states are read."""

    def __init__(self, model: Any, tokenizer: Any, places: Mapping[Any, Place], max_new_tokens: int) -> None:
        check_generates("SPARE", model)
        self.model, self.tokenizer, self.places = model, tokenizer, places
        self.max_new_tokens = max_new_tokens
        self.device = next(model.parameters()).device
        self.padding = padding_of(tokenizer)
        self.stops = stops_of(model, tokenizer)

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
                hooks.callback(place.attach(LastColumn("SPARE", states, site, place.path, seen).read, Stage.AFTER))
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
        return left_padded([self.tokenizer(prompt)["input_ids"] for prompt in prompts], self.padding, self.device)


@dataclass(frozen=True, eq=False)
class Begun:
    """Prompts [B, T], padded on the left; their first columns may be in a cache."""

    ids: Tensor
    mask: Tensor
    cache: Any = None
    n_cached: int = 0
