"""A page of a recording: its tokens in the colour of a feature's activation, one file that needs nothing else."""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sparsesteer.recording import files as recording_files

if TYPE_CHECKING:
    from torch import Tensor

    from sparsesteer.recording.recording import Recording

TEMPLATE = Path(__file__).parents[1] / "assets" / "token_view.html"
TITLE_MARK, DATA_MARK = "<!--title-->", '"recording"'
DIGITS = 5


def page(recording: "Recording", title: str) -> str:
    """See ``Recording.to_html``."""
    data = json.dumps(recording_files.finite(_data(recording)), ensure_ascii=False, separators=(",", ":"))
    before, after = TEMPLATE.read_text(encoding="utf-8").split(DATA_MARK)
    # without "<" in the data no token's text can end the script or begin a comment
    return before.replace(TITLE_MARK, html.escape(title)) + data.replace("<", "\\u003c") + after


def _data(recording: "Recording") -> dict:
    """What the page reads; activations feature by feature, so that one is drawn without the others."""
    sequences = []
    for number in recording.sequence_numbers:
        part = recording.sequence(number)
        sequences.append(
            {
                "number": number,
                "tokens": part.tokens.tolist(),
                "texts": None if part.texts is None else list(part.texts),
                "positions": part.positions.tolist(),
                "generated": part.generated.int().tolist(),
                "before": _rounded(part.before),
                "after": None if part.before.equal(part.after) else _rounded(part.after),
            }
        )
    features = [{"site": each.site, "feature": each.feature} for each in recording.features]
    return {"features": features, "sequences": sequences}


def _rounded(activations: "Tensor") -> list[list[float]]:
    """[n, M] as M lists of a few digits each."""
    return [[float(f"{value:.{DIGITS}g}") for value in column] for column in activations.T.tolist()]
