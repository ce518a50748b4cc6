"""A picture of a recording: activations along the tokens."""

import io
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparsesteer.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from sparsesteer.recording.recording import Recording

INK, MUTED, GRID = "#1f2328", "#6e7781", "#d8dee4"
BEFORE, AFTER = "#7b8494", "#d9480f"
MOST_LABELS = 80
INCHES_A_TOKEN, LEAST_WIDTH, MOST_WIDTH = 0.2, 6.0, 16.0
PANEL_HEIGHT = 1.6
ROOM_ABOVE = 1.08  # of the largest activation


def draw(recording: "Recording", path: Path) -> Path:
    """See ``Recording.plot``; one sequence."""
    if util.find_spec("matplotlib") is None:
        raise ImportError("Recording.plot needs matplotlib: pip install matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n, m = recording.before.shape
    width = min(MOST_WIDTH, max(LEAST_WIDTH, 1.5 + INCHES_A_TOKEN * n))
    figure = Figure(figsize=(width, PANEL_HEIGHT * m + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"Recording.plot: the file should end with .png, .svg or .pdf, got {path.name!r}")
    steered = not torch.equal(recording.before, recording.after)
    panels = figure.subplots(m, 1, sharex=True, squeeze=False)[:, 0]
    for column, axes in enumerate(panels):
        _panel(axes, recording, column, steered)
    _label_tokens(panels[-1], recording)
    if steered:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False,
                      fontsize="small", labelcolor=INK)  # fmt: skip
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=150)
    return write_whole(path, content.getvalue())


def _panel(axes: "Axes", recording: "Recording", column: int, steered: bool) -> None:
    places = range(len(recording))
    before, after = recording.before[:, column], recording.after[:, column]
    if steered:
        axes.plot(places, before, color=BEFORE, linewidth=1.2, linestyle=(0, (3, 1.5)), drawstyle="steps-mid",
                  label="before steering", zorder=3)  # fmt: skip
    axes.plot(places, after, color=AFTER, linewidth=1.4, drawstyle="steps-mid", label="after steering")
    axes.fill_between(places, after, 0, color=AFTER, alpha=0.13, linewidth=0, step="mid")
    _scale(axes, recording.positions, before, after)
    first = recording.generated.nonzero()
    if len(first) and 0 < int(first[0]):
        axes.axvline(int(first[0]) - 0.5, color=MUTED, linewidth=0.9, linestyle=":")
    each = recording.features[column]
    axes.set_title(f"feature {each.feature}", loc="left", fontsize="medium", color=INK, fontweight="bold")
    axes.set_title(each.site, loc="right", fontsize="x-small", color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.tick_params(colors=MUTED, labelsize="x-small", length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)


def _scale(axes: "Axes", positions: "Tensor", before: "Tensor", after: "Tensor") -> None:
    """The range of all tokens but a text's first, where many models park attention: what it has beyond is written."""
    both = torch.stack([before, after])
    finite = both[:, positions > 0] if (positions > 0).any() else both
    finite = finite[finite.isfinite()]
    low, high = (min(0.0, float(finite.min())), max(0.0, float(finite.max()))) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + 1.0
    axes.set_ylim(low * ROOM_ABOVE, high * ROOM_ABOVE)
    if float(after[0]) > high * ROOM_ABOVE:
        axes.annotate(f"\u2191 {float(after[0]):.4g}", (0, high * ROOM_ABOVE), xytext=(6, -9), color=MUTED,
                      textcoords="offset points", fontsize="x-small")  # fmt: skip


def _label_tokens(axes: "Axes", recording: "Recording") -> None:
    """Their texts, or as many as have room."""
    texts = recording.texts or [str(token) for token in recording.tokens.tolist()]
    places = range(0, len(texts), -(-len(texts) // MOST_LABELS))
    # a dollar would begin a formula
    labels = [repr(texts[place])[1:-1].replace("$", r"\$") for place in places]
    axes.set_xticks(list(places), labels, rotation=90, fontsize="x-small", color=INK)
    if recording.generated.any() and not recording.generated.all():
        axes.set_xlabel("tokens; those behind the dotted line were generated", fontsize="x-small", color=MUTED)
