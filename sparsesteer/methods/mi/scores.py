"""How well a word explains a feature, from p(word | feature) and p(feature | word)."""

import math
from collections.abc import Callable

from torch import Tensor

DEFAULT = "product"  # docs/methods/mutual-information.md has the figures that it was chosen by

# of log p(w|c) [f, w], log p(c|w) [f, w] and the number F of all features
SCORES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "literal": lambda word, feature, n_features: word.exp() * feature,
    "information": lambda word, feature, n_features: word.exp() * (feature + math.log(n_features)),
    "pointwise": lambda word, feature, n_features: feature + math.log(n_features),
    "product": lambda word, feature, n_features: word + feature,
    "logit": lambda word, feature, n_features: word,
}
ABOUT = {
    "literal": "p(w|c) log p(c|w), the released code's; at most 0, which words of no probability reach too",
    "information": "p(w|c) log (p(c|w) / p(c)) with p(c) = 1/F, a word's part of the mutual information of one feature",
    "pointwise": "log (p(c|w) / p(c)) with p(c) = 1/F, pointwise mutual information",
    "product": "log (p(w|c) p(c|w))",
    "logit": "log p(w|c): the logit lens over whole words",
}


def check_score(score: str) -> None:
    """Raises ValueError for a name that is none of SCORES."""
    if score not in SCORES:
        raise ValueError(f"explain: score should be one of {', '.join(SCORES)}, got {score!r}")
