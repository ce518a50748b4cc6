"""Ratios to the fastest competitor and shares of the machine's limit over N, as one picture."""

from collections.abc import Iterable
from pathlib import Path

from sparsesteer.benchmarks import best, suite

INCHES = 3.2, 2.8  # of one panel


def draw(rows: Iterable[best.Record], path: Path) -> None:
    """Write the picture; its format follows from the name.

    Raises:
        ImportError: without matplotlib.
        ValueError: no row of the usual sizes.
    """
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    lines = best.lines(rows)
    ops = [op for op in suite.BENCHES if any(line.op == op for line in lines)]
    if not ops:
        raise ValueError("there is nothing to draw: no row is of the usual sizes")
    size = INCHES[0] * len(ops), INCHES[1] * 2
    figure, panels = pyplot.subplots(2, len(ops), figsize=size, sharex=True, sharey="row", squeeze=False)
    for column, op in enumerate(ops):
        ratio, limit = panels[:, column]
        for line in (line for line in lines if line.op == op):
            n = list(line.cells)
            label = f"{line.D}, {line.F} {line.what}"
            ratio.plot(n, [cell.ratio for cell in line.cells.values()], marker=".", label=label)
            limit.plot(n, [cell.percent_of_limit for cell in line.cells.values()], marker=".")
        ratio.set_title(op)
        ratio.axhline(1, color="black", linewidth=0.8)
        ratio.set(xscale="log", yscale="log")
        ratio.legend(fontsize=5)
        limit.axhline(100, color="black", linewidth=0.8)
        limit.set(xlabel="N tokens", ylim=(0, None))
        for axis, base in ((ratio.xaxis, 8), (ratio.yaxis, 2)):
            axis.set_major_locator(LogLocator(base))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0, 0].set_ylabel("fastest competitor / ours")
    panels[1, 0].set_ylabel("% of the machine's limit")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
