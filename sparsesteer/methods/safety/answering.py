"""Greedy answers of a chat model to many prompts at once, and how well it still reads plain text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer.generation import as_text
from sparsesteer.methods.reading import left_padded, padding_of


def padded(
    tokenizer: Any, prompts: Sequence[str], system: str | None, device: torch.device | str
) -> Mapping[str, Tensor]:
    """input_ids and attention_mask [B, T] of prompts in the chat template, padded on the left.

    Raises:
        ValueError: a tokenizer without a chat template, no prompts.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; refusals are measured on models that chat")
    if not prompts:
        raise ValueError("there are no prompts")
    first = [] if system is None else [{"role": "system", "content": system}]
    texts = [
        tokenizer.apply_chat_template(
            [*first, {"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids, mask = left_padded(rows, padding_of(tokenizer), device)
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, system: str | None = None
) -> list[str]:
    """One batch, greedily, under whatever steers the model now."""
    given = padded(tokenizer, prompts, system, model.device)
    whole = model.generate(
        **given, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=padding_of(tokenizer)
    )
    return [as_text(tokenizer, row) for row in whole[:, given["input_ids"].shape[1] :].tolist()]


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str, n_tokens: int = 1024, window: int = 256) -> float:
    """Of plain text, in windows that are read apart; under whatever steers the model now.

    Raises:
        ValueError: a text shorter than one window.
    """
    ids = tokenizer(text)["input_ids"][:n_tokens]
    rows = torch.tensor(ids[: len(ids) // window * window], device=model.device).view(-1, window)
    if not len(rows):
        raise ValueError(f"a text of {len(ids)} tokens is too short for its perplexity; {window} are needed")
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    return math.exp(min(float(loss), 700.0))
