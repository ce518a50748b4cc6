"""The words that features are explained with, each with its tokens as it stands within a text."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from sparsesteer.logit_lens import word_tokens as starts_of_words

N_WORDS = 5000
LEAST_FREQUENCY = 5
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def of_tokenizer(tokenizer: Any, count: int = N_WORDS, unembedding: Tensor | None = None) -> dict[str, list[int]]:
    """{word: [its token]} of the words that are a token of their own, of three letters or more.

    Tokenizers number what they merged first, and that is what was most frequent: the first ``count`` are taken. Of
    words that differ in capitals alone the first stays.

    Args:
        unembedding: [V, D]; given, only the half of the words with the shortest rows counts. Pieces that a model hardly
            ever writes as a word ("dissemin") have long ones.

    Raises:
        ValueError: none of the tokens is such a word; give a vocabulary of your own.
    """
    tokens = starts_of_words(tokenizer)
    if unembedding is not None and len(tokens):
        lengths = unembedding[tokens.to(unembedding.device)].float().norm(dim=-1).cpu()
        tokens = tokens[lengths <= lengths.median()]
    ids = tokens.tolist()
    found: dict[str, tuple[str, int]] = {}
    for token in sorted(ids):
        word = tokenizer.decode([token]).strip()
        found.setdefault(word.casefold(), (word, token))
    if not found:
        raise ValueError("no token of this tokenizer is a word of its own; make a vocabulary of texts: of_texts(...)")
    return {word: [token] for word, token in list(found.values())[:count]}


def of_texts(
    texts: Iterable[str], tokenizer: Any, count: int = N_WORDS, least_frequency: int = LEAST_FREQUENCY
) -> dict[str, list[int]]:
    """{word: tokens of " " + word} of the most frequent words of a corpus, in lower case.

    Raises:
        ValueError: no word is frequent enough.
    """
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(word.casefold() for word in _WORD.findall(text))
    words = [word for word, times in seen.most_common() if times >= least_frequency][:count]
    if not words:
        raise ValueError(
            f"no word stands {least_frequency} times in the texts; lower least_frequency or give more text"
        )
    return of_words(words, tokenizer)


def of_words(words: Sequence[str], tokenizer: Any) -> dict[str, list[int]]:
    """{word: tokens of " " + word} of given words.

    Raises:
        ValueError: a word without tokens.
    """
    found = {word: list(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in words}
    for word, ids in found.items():
        if not ids:
            raise ValueError(f"the tokenizer has no tokens for {word!r}; leave it out of the vocabulary")
    return found
