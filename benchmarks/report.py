"""Rows of a benchmark: as JSON for machines, as tables for people."""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path

from sparsesteer.benchmarks import machine
from sparsesteer.benchmarks.case import Case
from sparsesteer.benchmarks.timing import Ratio, Spread

GEMM_ALONE = "its encoder GEMM alone"
TABLE_WIDTH = 140  # a pipe would get 80 columns, which cut the cells


LEAST_RATIOS = {GEMM_ALONE: 1 / 1.1}  # a part of ours, which nobody can beat: within a tenth of it


@dataclass(frozen=True)
class Row:
    """One competitor beside ours on one shape."""

    case: Case
    backend: str
    competitor: str
    device: str  # "cpu" or "cuda"; its name is added on writing
    cache: str  # "hot": the rows were just used; "cold": they come from memory
    ours: Spread
    theirs: Spread
    ratio: Ratio  # theirs / ours
    rounds: int
    limit_us: float  # of this machine for the case's bytes and operations
    peak_extra_bytes: int | None  # of ours, beside its arguments and its result; None where it cannot be measured
    correct: bool

    @property
    def percent_of_limit(self) -> float:
        """How much of what the machine can do ours does."""
        return 100 * self.limit_us / self.ours.p50

    @property
    def loses(self) -> bool:
        """True if ours is slower; beside a part of itself, if it is slower by more than a tenth."""
        return self.ratio.median < LEAST_RATIOS.get(self.competitor, 1.0)

    def as_json(self) -> dict[str, object]:
        """Flat, with the machine; a size that the op does not have is null."""
        fields = asdict(self)
        case = {name: value or None for name, value in fields.pop("case").items()}
        for side in ("ours", "theirs"):
            fields |= {f"{side}_us_{name}": value for name, value in fields.pop(side).items()}
        interval = fields.pop("ratio")
        fields |= {"ratio": interval["median"], "ratio_low": interval["low"], "ratio_high": interval["high"]}
        cost = {"bytes": self.case.n_bytes, "flops": self.case.flops, "dense_codes_bytes": self.case.dense_bytes}
        share = {"percent_of_limit": self.percent_of_limit}
        facts = machine.facts(self.device)
        return case | fields | cost | share | facts | {"device": f"{self.device}: {facts['device']}"}


def write_json(rows: Iterable[dict[str, object]], path: Path) -> None:
    """A list, each row on a line of its own; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        lines = ",\n".join(json.dumps(row) for row in rows)
        temporary.write_text(f"[\n{lines}\n]\n")
        os.replace(temporary, path)


def print_rows(rows: list[Row]) -> None:
    """A table for every op, competitor, SAE and dtype: tokens across, other sizes down. Losing cells are marked."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        case = row.case
        groups.setdefault((case.op, row.competitor, case.D, case.F, case.dtype, case.row_dtype), []).append(row)
    for (op, competitor, width, n_features, dtype, row_dtype), group in groups.items():
        title = f"{op} against {competitor}: D={width} F={n_features}, h {dtype}, rows {row_dtype}"
        columns = sorted({row.case.N for row in group})
        cells = {(_line(row), row.case.N): _cell(row) for row in group}
        body = [
            [line, *(cells.get((line, n), "") for n in columns)] for line in dict.fromkeys(_line(row) for row in group)
        ]
        print_table(title, ["", *(f"N={n}" for n in columns)], body)
    print(
        f"{len(rows)} comparisons, ours is slower in {sum(row.loses for row in rows)} (marked !). "
        "Each cell: ours in us, theirs / ours, % of the machine's limit."
    )


def _line(row: Row) -> str:
    case = row.case
    sizes = [f"{letter}={size}" for letter, size in (("M", case.M), ("K", case.K), ("S", case.S)) if size]
    return " ".join([*sizes, case.activation, row.cache])


def _cell(row: Row) -> str:
    mark = "!" if row.loses else ""
    return f"{row.ours.p50:.4g} {row.ratio.median:.2f}x {row.percent_of_limit:.0f}%{mark}"


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

    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in body:
        table.add_row(*(Text(cell, style="bold red" if cell.endswith("!") else "") for cell in row))
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(Text(f"\n{title}", style="bold"))
    console.print(table)
