"""What a direction of the residual stream does to the next word: through the final norm and the unembedding."""

from typing import Any

import torch
from torch import Tensor, nn

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_WORD_STARTS = ("Ġ", "▁")


def final_norm(model: nn.Module) -> nn.Module:
    """The norm before the unembedding. Raises ValueError if the model has none under a known name."""
    body = model.get_decoder()  # type: ignore[operator]
    for name in _FINAL_NORMS:
        if hasattr(body, name):
            return getattr(body, name)
    raise ValueError(f"no final norm found in {type(body).__name__}; looked for {', '.join(_FINAL_NORMS)}")


@torch.no_grad()
def direction_logits(model: nn.Module, directions: Tensor, among: Tensor | None = None) -> Tensor:
    """What each direction [M, D] adds to the logits [M, V], up to one factor per direction.

    Args:
        among: int64 [V'] token ids, the columns of the result; all if not given.
    """
    norm, unembedding = final_norm(model), model.get_output_embeddings().weight  # type: ignore[operator]
    unembedding = unembedding if among is None else unembedding[among]
    directions = directions.to(unembedding)
    # a norm with a bias maps the zero vector to that bias, which is no part of the direction
    through = norm(directions) - norm(torch.zeros_like(directions[:1]))
    return through @ unembedding.T


def promoted_tokens(model: nn.Module, directions: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Ids [M, k] of the tokens that each direction [M, D] promotes most, best first; of those in ``among`` if given."""
    rows = [direction_logits(model, chunk, among).topk(k, dim=-1).indices for chunk in directions.split(256)]
    top = torch.cat(rows)  # in chunks: M x V at once is gigabytes for all features of an SAE
    return top if among is None else among[top]


def word_tokens(tokenizer: Any, shortest: int = 3) -> Tensor:
    """Ids int64 of the tokens that are the start of a word, of at least ``shortest`` ASCII letters."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return torch.tensor([i for i, token in enumerate(tokens) if _is_word(token, shortest)], dtype=torch.int64)


def written_words(model: nn.Module, tokenizer: Any) -> Tensor:
    """Ids int64 of the half of the words with the shortest unembedding rows; all tokens if none begins a word.

    Pieces that a model hardly ever writes ("dissemin") have long, nearly equal rows, and a random direction promotes
    all of them together.
    """
    unembedding = model.get_output_embeddings().weight  # type: ignore[operator]
    words = word_tokens(tokenizer).to(unembedding.device)
    if len(words) == 0:
        return torch.arange(len(unembedding), device=unembedding.device)
    lengths = unembedding[words].float().norm(dim=-1)
    return words[lengths <= lengths.median()]


def _is_word(token: str | None, shortest: int) -> bool:
    if not token or not token.startswith(_WORD_STARTS):
        return False
    word = token[1:]
    return len(word) >= shortest and word.isascii() and word.isalpha()


def words_of(tokenizer: Any, ids: Tensor) -> list[str]:
    """The tokens [k] as text without the spaces around them."""
    return [tokenizer.decode([i]).strip() for i in ids.tolist()]
