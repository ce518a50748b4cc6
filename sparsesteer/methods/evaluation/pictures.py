"""The pictures of a report, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsesteer.methods.evaluation.scores import MEASURES
from sparsesteer.methods.evaluation.trials import Trial
from sparsesteer.methods.spare.spare import SPARE
from sparsesteer.methods.spare.statistics import SIDES

COLORS = {"context": "tab:orange", "memory": "tab:blue"}


def methods(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """EM of every method on test with its interval, one panel for each direction."""
    figure = _figure(9, 4.2)
    for axes, toward in zip(figure.subplots(1, 2), SIDES, strict=True):
        name = MEASURES[toward][0]
        some = [row for row in rows if row["toward"] == toward][::-1]
        for place, row in enumerate(some):
            value = row["measures"][name]
            color = COLORS[toward] if row["method"] == "SPARE" else "0.4"
            axes.plot([value["low"], value["high"]], [place, place], color=color)
            axes.plot(value["mean"], place, "o", color=color)
        axes.set_yticks(range(len(some)), [row["method"] for row in some])
        axes.set_xlabel(f"{name} on test, 95 % interval")
        axes.set_title(f"toward {toward}")
        axes.grid(axis="x", color="0.9")
    _write(figure, path)


def along(trials: Sequence[Trial], chosen: Mapping[str, Mapping[str, Any]], axis: str, path: Path) -> None:
    """EM of SPARE on dev along alpha or k, the other settings as chosen."""
    figure = _figure(5, 3.4)
    axes = figure.subplots()
    for toward, setting in chosen.items():
        fixed = {name: value for name, value in setting.items() if name != axis}
        points = {
            trial.setting[axis]: trial
            for trial in trials
            if trial.toward == toward and {n: v for n, v in trial.setting.items() if n != axis} == fixed
        }
        xs = sorted(points)
        axes.plot(xs, [points[x].em for x in xs], "o-", color=COLORS[toward], label=f"toward {toward}, its EM")
        axes.plot(xs, [points[x].em_other for x in xs], "o:", color=COLORS[toward], label="EM of the other side")
    if axis == "k":
        axes.set_xscale("log", base=2)
    axes.set_xlabel({"k": "features of each layer, k", "alpha": "alpha"}.get(axis, axis))
    axes.set_ylabel("EM on dev")
    axes.set_ylim(0, 1)
    axes.legend(fontsize="small")
    _write(figure, path)


def spectrum(spare: SPARE, path: Path) -> None:
    """Mutual information of the features of every layer, by rank."""
    figure = _figure(5, 3.4)
    axes = figure.subplots()
    for site, known in spare.statistics.items():
        falling = known.mi[known.mean_difference != 0].sort(descending=True).values
        axes.plot(range(1, len(falling) + 1), falling.tolist(), label=f"block {site}, {len(falling)} alive")
    axes.set_xscale("log")
    axes.set_xlabel("rank of the feature")
    axes.set_ylabel("mutual information, nats")
    axes.legend(fontsize="small")
    _write(figure, path)


def layers(scan: Sequence[Mapping[str, Any]], trials: Sequence[Trial], path: Path) -> None:
    """By layer: how well states tell the behaviour apart, and what SPARE at this layer alone reaches on dev."""
    figure = _figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    left.plot([r["site"] for r in scan], [r["auc"] for r in scan], "o-", color="0.3", label="states")
    some = [row for row in scan if "auc_features" in row]
    left.plot([r["site"] for r in some], [r["auc_features"] for r in some], "s--", color="0.6", label="k features")
    left.set_ylabel("AUC, context against memory")
    left.set_xlabel("block")
    left.legend(fontsize="small")
    for toward in SIDES:
        best: dict[int, float] = {}
        for trial in trials:
            if trial.toward == toward and len(trial.setting["layers"]) == 1:
                site = trial.setting["layers"][0]
                best[site] = max(best.get(site, 0.0), trial.em)
        right.plot(sorted(best), [best[site] for site in sorted(best)], "o-", color=COLORS[toward], label=toward)
    right.set_xlabel("block that SPARE edits alone")
    right.set_ylabel("best EM on dev")
    right.legend(fontsize="small", title="toward")
    _write(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
