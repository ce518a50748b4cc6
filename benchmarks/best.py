"""The fastest competitor of every case, which is the one that counts: what the README's table and the plot show."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsesteer.benchmarks import bench_encode, bench_steer_slots, suite
from sparsesteer.benchmarks.report import GEMM_ALONE

Record = Mapping[str, Any]  # a row as in the JSON file

OWN = {GEMM_ALONE, bench_encode.UNSCREENED, bench_steer_slots.STEER_LOOP}  # ours or a part of it, not a competitor
USUAL = {
    "steer": {"M": 64},
    "steer_slots": {"M": 16, "S": 8},
    "steer_topk": {"M": 64, "K": 64},
    "activations": {"M": 64},
    "activations_topk": {"M": 64, "K": 64},
}
USUAL_WHOLE = {"K": 64}


@dataclass(frozen=True)
class Cell:
    """One case."""

    ratio: float  # to the fastest competitor, smaller than 1 where that one is faster than ours
    competitor: str
    percent_of_limit: float


@dataclass(frozen=True)
class Line:
    """One op and SAE over all N."""

    op: str
    D: int
    F: int
    what: str
    cells: dict[int, Cell]  # by N


def lines(rows: Iterable[Record]) -> list[Line]:
    """The usual sizes of every op in fp32, in the order of the suite."""
    cases: dict[tuple, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["competitor"] not in OWN and row["dtype"] == "fp32" and _is_usual(row):
            cases[row["op"], row["D"], row["F"], _what(row)][row["N"]].append(row)
    order = list(suite.BENCHES)
    found = []
    for (op, width, n_features, what), by_n in cases.items():
        cells = {n: _fastest(group) for n, group in sorted(by_n.items())}
        found.append(Line(op, width, n_features, what, cells))
    return sorted(found, key=lambda line: (order.index(line.op), line.F, line.D))


def _is_usual(row: Record) -> bool:
    usual = USUAL.get(row["op"], USUAL_WHOLE)
    few_tokens = row["op"] == "steer_slots" and row["S"] == row["N"]  # no more slots than tokens
    return all(row[name] == size or (name == "S" and few_tokens) for name, size in usual.items())


def _what(row: Record) -> str:
    if row["op"] in ("steer", "steer_slots", "activations"):
        return "" if row["op"] == "steer_slots" else f"rows {row['cache']}"
    return "TopK" if row["activation"] == "topk" else "JumpReLU"


def _fastest(group: list[Record]) -> Cell:
    row = min(group, key=lambda row: row["ratio"])
    return Cell(row["ratio"], row["competitor"], row["percent_of_limit"])
