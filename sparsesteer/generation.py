"""From a prompt to token ids, and from a model to hidden states and text: chat template, seeded sampling."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer.model.sites import ModelSites
from sparsesteer.site import Site

_LONGEST_CHARACTER = 4  # bytes, and so tokens, of one character


def encode_prompt(tokenizer: Any, prompt: str, *, raw: bool = False, device: torch.device | str = "cpu") -> Tensor:
    """Token ids [1, T]; as a user's message in the tokenizer's chat template if it has one, unless ``raw``.

    Raises:
        ValueError: the prompt has no tokens.
    """
    if tokenizer.chat_template and not raw:
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise ValueError("the prompt is empty: it has no tokens")
    return torch.tensor([ids], device=device)


class _TokenCounter:
    """The part of a transformers streamer that counts."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token
        self._in_prompt = True  # generate() hands over the prompt first

    def put(self, ids: Tensor) -> None:
        if not self._in_prompt:
            self._on_token()
        self._in_prompt = False

    def end(self) -> None:
        pass


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: Any,
    input_ids: Tensor,  # [B, T], without padding
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    on_token: Callable[[], None] | None = None,
) -> list[list[int]]:
    """The new token ids of every row, at least one; greedy at temperature 0. ``on_token`` is called after each step.

    Raises:
        ValueError: a negative temperature, or no tokens asked for.
    """
    if temperature < 0:
        raise ValueError(f"the temperature should be 0 (greedy) or positive, got {temperature}")
    if max_new_tokens < 1:
        raise ValueError(f"at least 1 new token should be asked for, got {max_new_tokens}")
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(seed)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = model.generate(  # type: ignore[operator]
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        pad_token_id=padding,
        streamer=_TokenCounter(on_token) if on_token else None,
        **sampling,
    )
    return [_without_end(row, padding) for row in ids[:, input_ids.shape[1] :].tolist()]


def _without_end(ids: list[int], padding: int | None) -> list[int]:
    while len(ids) > 1 and ids[-1] == padding:
        ids = ids[:-1]
    return ids


@contextmanager
def hidden_states_at(model: nn.Module, site: Site | int) -> Iterator[list[Tensor]]:
    """A list to which every call of the model inside the ``with`` block adds its hidden states [B, T, D] at a site.

    Raises:
        ValueError: the model has no such site.
    """
    caught: list[Tensor] = []

    def catch(h: Tensor) -> Tensor:
        caught.append(h.clone())  # a model may write over its own
        return h

    detach = ModelSites.of(model).resolve(site).attach(catch)
    try:
        yield caught
    finally:
        detach()


def as_text(tokenizer: Any, ids: list[int]) -> str:
    """Ids as text without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each id adds to the text; a character of several tokens stands at the last of them, id -1 is empty."""
    texts = []
    start, done = 0, 0  # ids whose text is the context of the next ones, and those whose text is out
    for end in range(1, len(ids) + 1):
        if ids[end - 1] < 0:
            texts.append("")
            start = done = end
            continue
        known, whole = (_written(tokenizer, ids[start:stop]) for stop in (done, end))
        unfinished = whole.endswith("\ufffd") and end - done < _LONGEST_CHARACTER
        if unfinished or not whole.startswith(known):
            texts.append("" if unfinished else _written(tokenizer, ids[end - 1 : end]))
            done = done if unfinished else end
            continue
        texts.append(whole[len(known) :])
        start, done = done, end
    return texts


def _written(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""
