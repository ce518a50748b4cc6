"""For every feature the words of a vocabulary that say most of it, in tiles of features and words."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from sparsesteer import weights
from sparsesteer.explanations import Explanations
from sparsesteer.methods.mi.scores import ABOUT, DEFAULT, SCORES, check_score
from sparsesteer.sae import SAE

VERSION = "1"
VECTORS = ("encoder", "decoder")
_FEATURES_A_TILE, _WORDS_A_TILE = 4096, 2048  # 32 MB of scores in fp32

WordTokens = Mapping[str, Sequence[int]] | Sequence[Sequence[int]]
VectorTiles = Callable[[], Iterator[Tensor]]  # [f, D] at a time, all features in order


@torch.no_grad()
def explain(
    sae: SAE,
    unembedding: Tensor,
    final_norm: Callable[[Tensor], Tensor],
    word_tokens: WordTokens,
    score: str = DEFAULT,
    *,
    count: int = 15,
    vectors: str = "encoder",
    alpha: float = 1.0,
    beta: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Explanations:
    """Explain every feature by ``count`` words, by what it and they share in the model's output (arXiv 2502.15576).

    With v_c the vector of feature c behind the final norm, and e_w the mean output embedding of a word's tokens:

        s_cw = norm(v_c) . e_w      p(w|c) = softmax over w of s / alpha      p(c|w) = softmax over c of s / beta

    Two passes over the features, for the normalisers and for the scores; of the F x W scores only tiles exist, and of
    each feature the best words so far.

    Args:
        unembedding: [V, D], the output embedding.
        final_norm: the norm before it, of [n, D].
        word_tokens: the vocabulary, {word: ids of its tokens}; or the lists of ids alone, words then being their
            numbers. ``methods.mi.vocabulary`` makes one of a tokenizer or of texts.
        score: "literal", p(w|c) log p(c|w), which favours irrelevant words; "information", "pointwise", "product" or
            "logit", which rise with relevance (``methods.mi.scores``).
        count: words kept of each feature.
        vectors: of "encoder" (what makes a feature fire; the paper's SAEs are tied) or "decoder" (what it writes).
        alpha: temperature of p(w|c); beta: of p(c|w).
        dtype: in which vectors and embeddings are multiplied; sums are in fp32 at least.

    Raises:
        ValueError: an unembedding of another width than the SAE's; no words, a word without tokens, a token that the
            model lacks, a word twice; another score; a vector that is NaN or infinite.
        TypeError: arguments of other kinds.
    """
    check_score(score)
    if vectors not in VECTORS:
        raise ValueError(f"explain: vectors should be one of {', '.join(VECTORS)}, got {vectors!r}")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"explain: count should be a positive number of words, got {count!r}")
    for name, temperature in (("alpha", alpha), ("beta", beta)):
        if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
            raise ValueError(f"explain: {name} should be a positive number, got {temperature!r}")
    _check_widths(sae, unembedding, vectors)
    words, embeddings = word_embeddings(unembedding, word_tokens)
    tiles = vector_tiles(sae, final_norm, vectors, embeddings.device)
    places, scores = best_words(tiles, sae.d_sae, embeddings, score, min(count, len(words)), alpha, beta, dtype)
    if not torch.isfinite(scores).all():
        feature = int((~torch.isfinite(scores).all(1)).nonzero()[0])
        raise ValueError(f"explain: the scores of feature {feature} are not finite; is final_norm the model's own?")
    kept = places.shape[1]
    return Explanations(
        tuple(words),
        places.flatten().cpu(),
        scores.flatten().float().cpu(),
        torch.arange(0, sae.d_sae * kept + 1, kept) if kept else torch.zeros(sae.d_sae + 1, dtype=torch.int64),
        method=f"mutual information, {score}",
        method_version=VERSION,
        model=sae.site.model_name,
        about=f"Score: {ABOUT[score]}. Vectors: {vectors} rows behind the final norm.",
        details={"score": score, "vectors": vectors, "alpha": alpha, "beta": beta, "words": len(words)},
    )


def word_embeddings(unembedding: Tensor, word_tokens: WordTokens) -> tuple[list[str], Tensor]:
    """(words, fp32 [W, D] means of the output embeddings of their tokens).

    Raises:
        ValueError: no words, a word without tokens or twice, a token that is not in the vocabulary of the model.
    """
    named = word_tokens if isinstance(word_tokens, Mapping) else {str(i): ids for i, ids in enumerate(word_tokens)}
    words = list(named)
    if not words:
        raise ValueError("explain: the vocabulary is empty; give {word: ids of its tokens}")
    ids, lengths = [], []
    for word, tokens in named.items():
        tokens = [int(token) for token in tokens]
        if not isinstance(word, str) or not word.strip() or "\n" in word:
            raise ValueError(f"explain: a word should be text on one line, got {word!r}")
        if not tokens:
            raise ValueError(f"explain: the word {word!r} has no tokens; leave it out")
        if min(tokens) < 0 or max(tokens) >= len(unembedding):
            raise ValueError(
                f"explain: {word!r} has tokens {tokens}, but the unembedding has rows 0 to {len(unembedding) - 1}"
            )
        ids += tokens
        lengths.append(len(tokens))
    counts = torch.tensor(lengths, device=unembedding.device)
    owner = torch.repeat_interleave(counts)
    sums = torch.zeros(len(words), unembedding.shape[1], device=unembedding.device, dtype=_at_least_fp32(unembedding))
    for some, owners in zip(torch.tensor(ids).split(_WORDS_A_TILE), owner.split(_WORDS_A_TILE), strict=True):
        sums.index_add_(0, owners, unembedding[some.to(unembedding.device)].to(sums.dtype))
    return words, sums / counts[:, None]


def vector_tiles(
    sae: SAE, final_norm: Callable[[Tensor], Tensor], vectors: str, device: torch.device, tile: int = _FEATURES_A_TILE
) -> VectorTiles:
    """The vectors of all features behind the norm, some at a time."""

    matrix = sae.W_enc if vectors == "encoder" else sae.W_dec
    name = "W_enc" if vectors == "encoder" else "W_dec"

    def tiles() -> Iterator[Tensor]:
        for features in torch.arange(sae.d_sae).split(tile):
            rows = _rows(matrix, features, across=vectors == "encoder")
            weights.check_finite_rows(name, matrix, rows, features)
            yield final_norm(weights.at_least_fp32(rows).to(device))

    return tiles


def _rows(matrix: weights.Matrix, features: Tensor, across: bool) -> Tensor:
    """Of neighbouring features [f, D]. A tensor is cut, not indexed: indexing would copy all of a transposed one."""
    if not isinstance(matrix, Tensor):
        return matrix.columns(features) if across else matrix.rows(features)
    part = slice(int(features[0]), int(features[-1]) + 1)
    return matrix[:, part].T.contiguous() if across else matrix[part]


def best_words(
    tiles: VectorTiles,
    n_features: int,
    embeddings: Tensor,
    score: str,
    count: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    dtype: torch.dtype = torch.float32,
    tile: int = _WORDS_A_TILE,
) -> tuple[Tensor, Tensor]:
    """(places int64 [F, count] in the vocabulary, scores [F, count]), best first."""
    given = [some.to(dtype) for some in embeddings.split(tile)]
    of_feature, of_word = _normalisers(tiles, given, alpha, beta)
    places = torch.empty(n_features, count, dtype=torch.int64, device=embeddings.device)
    scores = torch.empty(n_features, count, dtype=of_word[0].dtype, device=embeddings.device)
    first = 0
    for vectors in tiles():
        rows = slice(first, first + len(vectors))
        best: tuple[Tensor, Tensor] | None = None
        for number, (some, normaliser) in enumerate(zip(given, of_word, strict=True)):
            s = _products(vectors, some)
            found = SCORES[score](s / alpha - of_feature[rows, None], s / beta - normaliser, n_features)
            top = found.topk(min(count, found.shape[1]), dim=1)
            best = _joined(best, (top.values, top.indices + number * tile), count)
        assert best is not None
        scores[rows], places[rows] = best
        first += len(vectors)
    return places, scores


def _normalisers(
    tiles: VectorTiles, embeddings: Sequence[Tensor], alpha: float, beta: float
) -> tuple[Tensor, list[Tensor]]:
    """log sums: over words [F] at temperature alpha, and over features [w] of each tile of words at beta."""
    of_feature = []
    of_word: list[Tensor | None] = [None] * len(embeddings)
    for vectors in tiles():
        over_words: Tensor | None = None
        for number, some in enumerate(embeddings):
            s = _products(vectors, some)
            over_words = _log_added(over_words, (s / alpha).logsumexp(1))
            of_word[number] = _log_added(of_word[number], (s / beta).logsumexp(0))
        assert over_words is not None
        of_feature.append(over_words)
    return torch.cat(of_feature), [each for each in of_word if each is not None]


def _products(vectors: Tensor, embeddings: Tensor) -> Tensor:
    """s [f, w], in fp32 at least."""
    product = vectors.to(embeddings.dtype) @ embeddings.T
    return product.to(torch.promote_types(product.dtype, torch.float32))


def _log_added(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else torch.logaddexp(total, more)


def _joined(best: tuple[Tensor, Tensor] | None, more: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """(scores, places) of the best of both."""
    if best is None:
        return more
    scores, places = (torch.cat(pair, dim=1) for pair in zip(best, more, strict=True))
    top = scores.topk(min(count, scores.shape[1]), dim=1)
    return top.values, places.gather(1, top.indices)


def _check_widths(sae: SAE, unembedding: Tensor, vectors: str) -> None:
    if not isinstance(sae, SAE):
        raise TypeError(f"explain: sae should be an SAE, got {type(sae).__name__}")
    if not isinstance(unembedding, Tensor) or unembedding.dim() != 2 or not unembedding.is_floating_point():
        raise TypeError("explain: unembedding should be a floating point matrix [V, D]")
    width = sae.d_in if vectors == "encoder" else sae.d_out
    if unembedding.shape[1] != width:
        raise ValueError(
            f"explain: the SAE's {vectors} rows have width {width}, the unembedding {unembedding.shape[1]}; "
            "is it the SAE of another model?"
        )


def _at_least_fp32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
