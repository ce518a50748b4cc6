"""Writes the committed results into README.md, as a table and a plot: python -m sparsesteer.benchmarks.readme"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from sparsesteer.benchmarks import best, goals, plot
from sparsesteer.benchmarks.report import LEAST_RATIOS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"  # a folder a device, in it a file for each op and SAE
BEGIN, END = "<!-- speed: from benchmarks/results, by python -m sparsesteer.benchmarks.readme -->", "<!-- end -->"
TOKENS = (1, 8, 32, 128, 512)
MEMORY_TOKENS = 512


def results() -> dict[str, list[best.Record]]:
    """All committed rows, by the folder of their device."""
    found = {}
    for folder in sorted(path for path in RESULTS.glob("*") if path.is_dir() and path.name != "local"):
        found[folder.name] = [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())]
    return {name: rows for name, rows in found.items() if rows}


def section(devices: dict[str, list[best.Record]]) -> str:
    """The generated part of the README, in Markdown."""
    return "\n\n".join(_device(name, rows) for name, rows in devices.items())


def with_section(readme: str, text: str) -> str:
    """The README with another generated part. Raises ValueError if the marks of its place are missing."""
    if readme.count(BEGIN) != 1 or END not in readme.partition(BEGIN)[2]:
        raise ValueError(f"README.md should hold {BEGIN} once, and after it {END}")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def plot_of(name: str) -> Path:
    """Where the plot of a device lies."""
    return RESULTS / name / "speed.png"


def _device(name: str, rows: list[best.Record]) -> str:
    first = rows[0]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    n_lost = sum(row["ratio"] < LEAST_RATIOS.get(row["competitor"], 1.0) for row in rows)
    place = (
        f"{first['device']}, torch {first['versions']['torch']}, commit {commits}: {len(rows)} comparisons, ours is "
        f"slower in {n_lost}."
    )
    picture = f"![ratio and share of the limit over N]({plot_of(name).relative_to(ROOT)})"
    wishes = "\n".join(f"- {line}" for line in goals.reached(rows))
    return "\n\n".join([place, _table(best.lines(rows)), picture, _memory(rows), "Against the goals:", wishes])


def _table(lines: Iterable[best.Line]) -> str:
    head = ["op", "D, F", "", *(f"N = {n}" for n in TOKENS)]
    body = [
        [f"`{line.op}`", f"{line.D}, {_thousands(line.F)}", line.what, *(_cell(line.cells.get(n)) for n in TOKENS)]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def _cell(cell: best.Cell | None) -> str:
    if cell is None:
        return ""
    ratio = f"{cell.ratio:.1f}" if cell.ratio >= 2 else f"{cell.ratio:.2f}"
    return f"{f'**{ratio}**' if cell.ratio < 1 else ratio} ({cell.percent_of_limit:.0f} %)"


def _memory(rows: list[best.Record]) -> str:
    """The most that a call needed, beside what N x F would be in its case."""
    head = "| op | case | peak extra memory | N x F in fp32 |\n|---|---|---|---|"
    body = []
    for op in dict.fromkeys(row["op"] for row in rows):
        measured = [r for r in rows if r["op"] == op and r["peak_extra_bytes"] is not None and r["N"] <= MEMORY_TOKENS]
        if measured:
            most = max(measured, key=lambda row: (row["N"], row["F"], row["peak_extra_bytes"]))
            case = f"D = {most['D']}, F = {_thousands(most['F'])}, N = {most['N']}"
            body.append(f"| `{op}` | {case} | {_mega(most['peak_extra_bytes'])} | {_mega(most['dense_codes_bytes'])} |")
    return "\n".join([head, *body])


def _thousands(number: int) -> str:
    return f"{number / 1000:.1f}k" if number < 10000 else f"{number // 1000}k"


def _mega(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def main() -> int:
    """Rewrite the README's part and draw the plots."""
    devices = results()
    readme = ROOT / "README.md"
    readme.write_text(with_section(readme.read_text(), section(devices)))
    for name, rows in devices.items():
        plot.draw(rows, plot_of(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
