"""The figures of the report, as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SEED = {"svg.hashsalt": "alignsae", "svg.fonttype": "none"}


def confusion(shares: Sequence[Sequence[float]], concepts: Sequence[str], path: Path) -> None:
    """Slots by concepts, each concept's column summing to 1."""
    figure, axes = _figure(4.6, 4)
    axes.grid(False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            if value >= 0.005:
                color = "white" if value > 0.5 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=color)
    axes.set_xticks(range(len(concepts)), concepts, rotation=45, ha="right")
    axes.set_yticks(range(len(concepts)), concepts)
    axes.set_xlabel("concept asked for")
    axes.set_ylabel("largest slot")
    _write(figure, path)


def layers(found: Mapping[str, Any], path: Path) -> None:
    """Slot accuracy and best swap success on validation by layer."""
    figure, axes = _figure(5.4, 3.4)
    binding, scan = found["binding"], found["validation"]
    blocks = [row["layer"] for row in binding]
    for name in [name for name, value in binding[0].items() if isinstance(value, dict) and "diagonal" in value]:
        axes.plot(blocks, [row[name]["accuracy"] for row in binding], ".:", label=f"slot accuracy, {_plain(name)}")
    for form in scan[str(blocks[0])]:
        best = [max(each["strict"] for each in scan[str(block)][form].values()) for block in blocks]
        axes.plot(blocks, best, "o-", label=f"swaps on validation, {_plain(form)}")
    axes.set_xlabel("block behind which the states are read")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks(blocks)
    axes.legend(fontsize="x-small")
    _write(figure, path)


def alphas(scan: Mapping[str, Any], path: Path) -> None:
    """Strict swap success on validation along alpha, a line for each layer; the whole lines are of the slot edit."""
    figure, axes = _figure(5.4, 3.4)
    for number, (layer, forms) in enumerate(scan.items()):
        for form, style in (("slot", "o-"), ("latent_decode", ".:")):
            points = sorted((float(alpha), each["strict"]) for alpha, each in forms[form].items())
            label = f"block {layer}" if form == "slot" else None
            axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("alpha (dotted: latent decode)")
    axes.set_ylabel("strict success on validation")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize="x-small")
    _write(figure, path)


def epochs(by_layer: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """The diagonal on validation along the epochs of training."""
    figure, axes = _figure(5.4, 3.4)
    for layer, rows in by_layer.items():
        axes.plot([row["epoch"] for row in rows], [row["diagonal"] for row in rows], label=f"block {layer}, validation")
        some = [row for row in rows if row["slots"] is not None]
        axes.plot([row["epoch"] for row in some], [row["slots"] for row in some], ":", label=f"block {layer}, training")
    axes.set_xlabel("epoch")
    axes.set_ylabel("diagonal, slot accuracy")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize="x-small")
    _write(figure, path)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    return figure, axes


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(SEED):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
