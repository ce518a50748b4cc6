"""A page to browse features: their words, contexts and densities in one file that needs nothing else."""

import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsesteer.writing import write_whole

TEMPLATE = Path(__file__).parent / "assets" / "feature_view.html"
TITLE_MARK, DATA_MARK = "<!--title-->", '"features"'


def write(path: Path, title: str, features: Iterable[Mapping[str, Any]]) -> Path:
    """Write the page; returns its path.

    Args:
        features: of each, feature, words (word, score), density, maximum, label, summary, verdict, contexts (tokens,
            activations), whatever of it is known.

    Raises:
        ValueError: no features.
    """
    places: dict[str, int] = {}
    rows = [_row(each, places) for each in features]
    if not rows:
        raise ValueError("there are no features to make a page of")
    data = json.dumps({"vocabulary": list(places), "features": rows}, ensure_ascii=False, separators=(",", ":"))
    before, after = TEMPLATE.read_text(encoding="utf-8").split(DATA_MARK)
    # without "<" in the data no text can end the script or begin a comment
    page = before.replace(TITLE_MARK, html.escape(title)) + data.replace("<", "\\u003c") + after
    return write_whole(path, page.encode())


def _row(known: Mapping[str, Any], places: dict[str, int]) -> dict[str, Any]:
    """A feature in few bytes: words as places in the vocabulary, what is not known left out."""
    words = known["words"]
    row = {
        "n": known["feature"],
        "w": [places.setdefault(each["word"], len(places)) for each in words],
        "s": [_short(each["score"]) for each in words],
        "d": None if known["density"] is None else _short(known["density"]),
        "m": None if known["maximum"] is None else _short(known["maximum"]),
        "label": known["label"],
        "summary": known["summary"],
        "c": [[each["tokens"], [_short(a) for a in each["activations"]]] for each in known["contexts"]],
    }
    return {name: value for name, value in row.items() if value or value == 0}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
