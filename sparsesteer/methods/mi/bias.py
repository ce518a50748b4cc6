"""Whether explanations are made of the same few, frequent words: what the paper's diagnostics ask of a set of them."""

from collections import Counter

from sparsesteer.explanations import Explanations

SUPERFICIAL_RANK, SUPERFICIAL_LENGTH = 250, 4


def frequency_bias(explanations: Explanations) -> dict[str, float]:
    """Shares, of a vocabulary that goes from frequent words to rare ones, as those made of tokenizers and texts do.

    A word is superficial if it is among the first 250 or shorter than four letters (the released code's rule).

    Returns:
        superficial: of the words in explanations, how many are; expected: how many of the vocabulary are.
        diversity: of the vocabulary's other words, how many stand in some explanation.
        dominance: of the explained features, how many the most used word explains.

    Raises:
        ValueError: no feature has words.
    """
    used = explanations.words.tolist()
    if not used:
        raise ValueError("frequency_bias: no feature has words")
    superficial = {
        place
        for place, word in enumerate(explanations.vocabulary)
        if place < SUPERFICIAL_RANK or len(word) < SUPERFICIAL_LENGTH
    }
    counts = Counter(used)
    others = len(explanations.vocabulary) - len(superficial)
    explained = int((explanations.starts.diff() > 0).sum())
    return {
        "superficial": sum(n for place, n in counts.items() if place in superficial) / len(used),
        "expected": len(superficial) / len(explanations.vocabulary),
        "diversity": len(counts.keys() - superficial) / others if others else 0.0,
        "dominance": max(counts.values()) / explained,
    }
