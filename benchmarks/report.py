"""Rows of a benchmark: as JSON for machines, as tables for people."""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path

from sparsesteer.benchmarks import machine
from sparsesteer.benchmarks.timing import Ratio, Spread

TABLE_WIDTH = 110  # a pipe would get 80 columns, which cut the cells


@dataclass(frozen=True)
class Row:
    """One competitor beside ours on one shape."""

    op: str
    backend: str
    competitor: str
    device: str  # "cpu" or "cuda"; its name is added on writing
    D: int
    F: int
    N: int
    M: int
    K: int | None
    dtype: str  # of h
    row_dtype: str
    cache: str  # "hot": the plan's rows were just used; "cold": they come from memory
    ours: Spread
    theirs: Spread
    ratio: Ratio  # theirs / ours
    rounds: int
    bytes: int  # that must be moved once: rows, h, result
    flops: int
    limit_us: float  # of this machine for these bytes and operations
    correct: bool

    @property
    def percent_of_limit(self) -> float:
        """How much of what the machine can do ours does."""
        return 100 * self.limit_us / self.ours.p50

    def as_json(self) -> dict[str, object]:
        """Flat, with the machine."""
        fields = asdict(self)
        for side in ("ours", "theirs"):
            fields |= {f"{side}_us_{name}": value for name, value in fields.pop(side).items()}
        interval = fields.pop("ratio")
        fields |= {"ratio": interval["median"], "ratio_low": interval["low"], "ratio_high": interval["high"]}
        facts = machine.facts(self.device)
        place = {"device": f"{self.device}: {facts['device']}"}
        return fields | {"percent_of_limit": self.percent_of_limit} | facts | place


def write_json(rows: Iterable[dict[str, object]], path: Path) -> None:
    """A list of rows; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        temporary.write_text(json.dumps(list(rows), indent=1) + "\n")
        os.replace(temporary, path)


def print_rows(rows: list[Row]) -> None:
    """A table for every competitor, SAE and dtype: tokens across, edited features down. Losing cells are marked."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.competitor, row.D, row.F, row.dtype, row.row_dtype), []).append(row)
    for (competitor, width, n_features, dtype, row_dtype), group in groups.items():
        title = f"steer against {competitor}: D={width} F={n_features}, h {dtype}, rows {row_dtype}"
        columns = sorted({row.N for row in group})
        cells = {(row.M, row.cache, row.N): _cell(row) for row in group}
        body = [
            [f"M={m} {cache}", *(cells.get((m, cache, n), "") for n in columns)]
            for m, cache in dict.fromkeys((row.M, row.cache) for row in group)
        ]
        print_table(title, ["", *(f"N={n}" for n in columns)], body)
    losing = sum(row.ratio.median < 1 for row in rows)
    print(f"{len(rows)} comparisons, ours is slower in {losing} (marked !). Each cell: ours in us, theirs / ours.")


def _cell(row: Row) -> str:
    return f"{row.ours.p50:.4g} {row.ratio.median:.2f}x{'!' if row.ratio.median < 1 else ''}"


def print_table(title: str, columns: list[str], body: list[list[str]]) -> None:
    """With rich where it is installed; a cell that ends with ! is red."""
    if util.find_spec("rich") is None:
        widths = [max(map(len, column)) for column in zip(columns, *body, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (columns, *body)
        ]
        print("\n".join(["", title, *lines]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in body:
        table.add_row(*(Text(cell, style="bold red" if cell.endswith("!") else "") for cell in row))
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)
