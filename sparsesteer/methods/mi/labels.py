"""Labels of features from the words that explain them, by an annotator of your choice; answers are kept in a file."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sparsesteer.explanations import Explanations
from sparsesteer.methods.evaluation.json_lines import JsonLines

PROMPT_VERSION = "1"  # of the questions in ``asking`` and the rules in ``word_lists``; a new one asks everything anew
N_WORDS = 15
VOTES = ("yes", "probably", "unlikely", "no")
MOST_JUNK = 0.5


class JunkAnswer(ValueError):
    """An annotator's answer that is none of those it may give."""


@dataclass(frozen=True)
class Annotation:
    """What an annotator says of one feature.

    Attributes:
        summary: in a few words; None where it cannot tell.
        label: one of the annotator's, or None.
        votes: of the judge, whether the words say what the summary does: three of VOTES.
    """

    summary: str | None
    label: str | None
    votes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The vote of two of three, "no" where they are all different."""
        vote, times = Counter(self.votes).most_common(1)[0]
        return vote if times * 2 > len(self.votes) else "no"


class Annotator(Protocol):
    """Summarises, labels and judges a feature by its words."""

    name: str  # tells its answers from those of others in the file

    def annotate(self, words: Sequence[str]) -> Annotation:
        """Raises JunkAnswer for an answer that is none; whatever else it raises ends the run."""


def label(
    explanations: Explanations,
    annotator: Annotator,
    answers: str | os.PathLike,
    features: Iterable[int] | None = None,
) -> Explanations:
    """The explanations with summary, label, verdict and votes noted for each feature.

    An answer is written to the file ``answers`` as it comes; the same call goes on where one was interrupted, and asks
    again only if words, annotator or the version of the questions changed. Junk is kept as such, and labels nothing.

    Args:
        features: all of them that have words by default.

    Raises:
        RuntimeError: the annotator failed; what was answered before is in the file.
        ValueError: no features; more than half of the answers were junk; a file of something else.
    """
    chosen = [f for f in (range(len(explanations)) if features is None else features) if explanations[f]]
    if not chosen:
        raise ValueError("label: there are no features with words to label")
    lines = JsonLines.opened(answers)
    known = {_key(row): row for row in lines.rows}
    rows = {}
    for number, feature in enumerate(chosen):
        words = [scored.word for scored in explanations[feature][:N_WORDS]]
        asked = {"annotator": annotator.name, "prompt": PROMPT_VERSION, "words": _digest(words)}
        row = known.get(_key(asked))
        if row is None:
            row = asked | _asked(annotator, words, f"{number} of {len(chosen)} features are labelled", answers)
            lines.add(row)
            known[_key(row)] = row
        rows[feature] = row
    junk = [row["junk"] for row in rows.values() if "junk" in row]
    if len(junk) > MOST_JUNK * len(rows):
        raise ValueError(
            f"label: {len(junk)} of {len(rows)} answers are junk, such as {junk[0]!r}; all are in {answers}"
        )
    return explanations.with_notes([_note(rows.get(f)) for f in range(len(explanations))])


def _asked(annotator: Annotator, words: Sequence[str], so_far: str, answers: object) -> dict[str, Any]:
    try:
        found = annotator.annotate(words)
    except JunkAnswer as error:
        return {"junk": str(error)}
    except Exception as error:
        raise RuntimeError(
            f"label: {annotator.name} failed ({error!r}); {so_far}, their answers are in {answers}: call again to go on"
        ) from error
    unknown = sorted(set(found.votes) - set(VOTES))
    if unknown or not found.votes:
        return {"junk": f"votes {list(found.votes)}"}
    return asdict(found) | {"votes": list(found.votes), "verdict": found.verdict}


def _note(row: dict[str, Any] | None) -> dict[str, Any]:
    if row is None or "junk" in row:
        return {}
    return {name: row[name] for name in ("summary", "label", "verdict", "votes")}


def _key(row: dict[str, Any]) -> tuple:
    try:
        return row["annotator"], row["prompt"], row["words"]
    except KeyError as error:
        raise ValueError(
            f"label: the file of answers has a line without {error}; is it one of something else?"
        ) from error


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:16]
