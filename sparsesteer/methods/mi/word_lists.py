"""The annotator that needs nobody: a label's own words are counted among those of a feature."""

import re
from collections.abc import Collection, Mapping, Sequence

from sparsesteer.methods.mi.labels import Annotation

LEAST = 2  # words of a label among fifteen
THIRDS = 3

# What a defence steers by, after the areas of harm and of safe behaviour that arXiv 2502.15576 labels. Words are stems:
# "harm" finds "harmful" and "harms".
SAFETY = {
    "harm and danger": ("harm", "danger", "hazard", "risk", "threat", "toxic", "fatal", "injur", "damag", "poison"),
    "crime and law": (
        *("crim", "illegal", "unlawful", "legal", "law", "police", "court", "prison", "arrest", "guilt", "fraud"),
        *("theft", "steal", "justice", "punish", "prohibit", "regulat", "violat", "penalt"),
    ),
    "violence": ("violen", "weapon", "kill", "murder", "attack", "assault", "abus", "bomb", "gun", "terror"),
    "privacy and security": (
        "privacy",
        "private",
        "secur",
        "confident",
        "password",
        "hack",
        "protect",
        "safe",
        "surveil",
    ),
    "ethics": ("ethic", "moral", "responsib", "respect", "consent", "honest", "integrity", "discriminat", "unethical"),
    "refusal": ("sorry", "cannot", "can't", "unable", "refus", "apolog", "inappropriate", "decline", "unfortunately"),
    "care for victims": ("victim", "counsel", "therap", "emergenc", "suicid", "distress", "rescue", "trauma"),
}


class WordLists:
    """Labels a feature by the label that has most of its words, at least two.

    Its judge votes three times, on every third word from the first, the second and the third on: "yes" where one of
    the label's words is among them, "no" where none is. So two words side by side are a majority, and two that are
    three apart are not.

    Args:
        lists: {label: stems of words}.
        least: words of a label that a feature should have.

    Raises:
        ValueError: no lists, or an empty one.
    """

    def __init__(self, lists: Mapping[str, Collection[str]] = SAFETY, least: int = LEAST) -> None:
        if not lists or not all(lists.values()):
            raise ValueError("WordLists: give at least one word for each of the labels")
        self._patterns = {
            name: re.compile("|".join(map(re.escape, words)), re.IGNORECASE) for name, words in lists.items()
        }
        self.least = least
        self.name = (
            f"word lists, at least {least}: {', '.join(f'{name} {len(words)}' for name, words in lists.items())}"
        )

    def annotate(self, words: Sequence[str]) -> Annotation:
        """See ``labels.Annotator``."""
        hits = {name: [bool(pattern.match(word)) for word in words] for name, pattern in self._patterns.items()}
        best = max(hits, key=lambda name: sum(hits[name]))
        summary = ", ".join(words[:3])
        if sum(hits[best]) < self.least:
            return Annotation(summary, None, ("no",) * THIRDS)
        votes = tuple("yes" if any(hits[best][first::THIRDS]) else "no" for first in range(THIRDS))
        return Annotation(summary, best, votes)
