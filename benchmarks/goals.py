"""What the kernels are meant to reach, and whether the rows of a benchmark show it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsesteer.benchmarks import bench_decode, bench_encode, bench_steer_reconstruct, competitors
from sparsesteer.benchmarks.report import GEMM_ALONE

Record = Mapping[str, Any]  # a row as in the JSON file
CACHE_BYTES = 64 << 20  # more than the last-level cache of the machines measured so far


@dataclass(frozen=True)
class Goal:
    """A bound of a field, for the rows of an op beside one competitor."""

    text: str
    device: str
    op: str
    competitor: str
    where: Callable[[Record], bool] = lambda row: True
    bound: float = 1.0
    field: str = "ratio"
    at_most: bool = False

    def distance(self, row: Record) -> float:
        """Above 0 on the right side of the bound."""
        return (self.bound - row[self.field]) * (1 if self.at_most else -1)

    def of(self, rows: Iterable[Record]) -> list[Record]:
        """The rows that it speaks of."""
        return [
            row
            for row in rows
            if (row["op"], row["competitor"]) == (self.op, self.competitor)
            and row["device"].startswith(self.device)
            and self.where(row)
        ]


GOALS = (
    Goal("steer: never slower than gathered torch", "cpu", "steer", competitors.GATHERED),
    Goal(
        "steer: 3000 times SAELens's arithmetic at F = 131k, one token", "cpu", "steer", competitors.SAELENS_ARITHMETIC,
        lambda row: row["F"] == 131072 and row["N"] == 1, 3000,
    ),
    Goal("encode: never slower than torch's linear and topk", "cpu", "encode", bench_encode.LINEAR_TOPK),
    Goal(
        "encode: 1.2 times torch at N = 512, F = 4.6k", "cpu", "encode", bench_encode.LINEAR_TOPK,
        lambda row: row["N"] == 512 and row["F"] == 4608, 1.2,
    ),
    Goal(
        "encode: 80 % of the read bandwidth at N = 1, from memory", "cpu", "encode", bench_encode.LINEAR_TOPK,
        lambda row: row["N"] == 1 and row["bytes"] > CACHE_BYTES, 80, "percent_of_limit",
    ),
    Goal(
        "encode, screened: twice our own fp32 form at N = 1, F >= 65k", "cpu", "encode_screened",
        bench_encode.UNSCREENED, lambda row: row["N"] == 1 and row["F"] >= 65536, 2,
    ),
    Goal(
        "steer_topk: at most 1.1 times its encoder GEMM for M <= 64", "cpu", "steer_topk", GEMM_ALONE,
        lambda row: row["M"] <= 64, 1 / 1.1,
    ),
    Goal(
        "steer_reconstruct: 1.8 times SAELens's forward for F >= 16k", "cpu", "steer_reconstruct",
        bench_steer_reconstruct.SAELENS_FORWARD, lambda row: row["F"] >= 16384, 1.8,
    ),
    Goal(
        "steer: 5 us at N <= 32, M <= 64, within a CUDA graph", "cuda", "steer", competitors.GATHERED,
        lambda row: row["N"] <= 32 and row["M"] <= 64 and row["cache"] == "hot", 5, "ours_us_p50", at_most=True,
    ),
    Goal(
        "steer: 8 us at N <= 32, M = 256, within a CUDA graph", "cuda", "steer", competitors.GATHERED,
        lambda row: row["N"] <= 32 and row["M"] == 256 and row["cache"] == "hot", 8, "ours_us_p50", at_most=True,
    ),
    Goal(
        "steer: prefill of 4096 tokens within 1.5 times reading and writing them once", "cuda", "steer",
        competitors.GATHERED, lambda row: row["N"] == 4096 and row["D"] >= 2304 and row["M"] <= 64, 100 / 1.5,
        "percent_of_limit",
    ),
    Goal(
        "encode: 80 % of the bandwidth at N = 1", "cuda", "encode", bench_encode.LINEAR_TOPK,
        lambda row: row["N"] == 1, 80, "percent_of_limit",
    ),
    Goal(
        "steer_topk: 80 % of the bandwidth at N = 1", "cuda", "steer_topk", GEMM_ALONE,
        lambda row: row["N"] == 1, 80, "percent_of_limit",
    ),
    Goal(
        "steer_reconstruct: ahead of SAELens", "cuda", "steer_reconstruct", bench_steer_reconstruct.SAELENS_FORWARD,
    ),
    Goal("encode: ahead of eai-sparsify", "cuda", "encode", bench_encode.SPARSIFY),
    Goal("encode: ahead of SAELens", "cuda", "encode", bench_encode.SAELENS),
    Goal("decode: ahead of eai-sparsify", "cuda", "decode", bench_decode.SPARSIFY),
    Goal("decode: ahead of SAELens", "cuda", "decode", bench_decode.SAELENS),
    Goal("decode: ahead of torch", "cuda", "decode", bench_decode.BAG),
)  # fmt: skip


def reached(rows: Iterable[Record]) -> list[str]:
    """A line for each goal that the rows speak of: in how many of them it is reached, and the worst."""
    rows = list(rows)
    return [_line(goal, found) for goal in GOALS if (found := goal.of(rows))]


def _line(goal: Goal, rows: list[Record]) -> str:
    worst = min(rows, key=goal.distance)
    n_reached = sum(goal.distance(row) >= 0 for row in rows)
    sizes = " ".join(f"{letter}={worst[letter]}" for letter in "DFNMKS" if worst[letter])
    place = f"{sizes} {worst['activation']} {worst['dtype']} {worst['cache']}"
    numbers = f"worst {_brief(worst[goal.field])} (goal {_brief(goal.bound)})"
    return f"{goal.text}: {n_reached} of {len(rows)}; {numbers} at {place}"


def _brief(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
