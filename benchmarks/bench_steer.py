"""``steer`` beside everything else that does the same: python -m sparsesteer.benchmarks.bench_steer --quick"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from sparsesteer import _dispatch
from sparsesteer._layout import N_COLUMNS
from sparsesteer.benchmarks import competitors, gate, machine, report, timing
from sparsesteer.benchmarks.competitors import (
    COMPILED,
    ENCODE_ALL,
    GATHERED,
    OURS,
    SAELENS_ARITHMETIC,
    SAELENS_CLASS,
    Transform,
    Weights,
)
from sparsesteer.benchmarks.report import Row
from sparsesteer.plans import SteeringPlan

SHAPES = ((576, 4608), (2304, 16384), (2304, 65536), (3584, 131072), (4096, 32768), (4096, 131072))
QUICK_SHAPES = ((576, 4608), (2304, 16384), (4096, 32768))
TOKENS, QUICK_TOKENS = (1, 8, 32, 128, 512, 4096), (1, 8, 32, 128, 512)
EDITED = (1, 16, 64, 256, 1024)
USUAL_EDITED = 64  # where all competitors take part
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

COLD_BYTES = 160 << 20  # of both matrices; several times a last-level cache
MOST_FLOPS_CPU = 2e10  # of a call
MOST_FLOPS_WHOLE_SAE, MOST_FLOPS_WHOLE_SAE_QUICK = 2e11, 5e9
WHOLE_SAE_ROUNDS = 5
SECONDS, SECONDS_QUICK = 0.5, 0.1  # of a comparison, once it has the least number of rounds

Track = Callable[[Iterable, str], Iterable]  # hands items on and shows the progress


@dataclass(frozen=True)
class Case:
    """One shape; rows are fp32 whatever h is."""

    width: int
    n_features: int
    n_tokens: int
    n_edited: int
    dtype: str

    def __str__(self) -> str:
        return f"D={self.width} F={self.n_features} N={self.n_tokens} M={self.n_edited} {self.dtype}"

    @property
    def flops(self) -> int:
        """Encoding and decoding M rows for N tokens."""
        return 4 * self.n_tokens * self.n_edited * self.width

    @property
    def n_bytes(self) -> int:
        """Both matrices' rows and the row table once, h read and the result written once."""
        rows = self.n_edited * (2 * self.width + N_COLUMNS) * 4
        return rows + 2 * self.n_tokens * self.width * DTYPES[self.dtype].itemsize

    def limit_us(self, device: str, cache: str) -> float:
        """What the slower of memory and arithmetic needs at this machine's measured rates."""
        from_cache = self.n_bytes if cache == "hot" else machine.MEMORY_BYTES
        seconds = self.n_bytes / machine.bandwidth(device, from_cache)
        return 1e6 * max(seconds, self.flops / machine.matmul_rate(device, torch.float32))


def cases(quick: bool, device: str, shapes: Iterable[tuple[int, int]] = ()) -> list[Case]:
    """What is measured; on the CPU without calls of more than ``MOST_FLOPS_CPU``."""
    shapes = tuple(shapes) or (QUICK_SHAPES if quick else SHAPES)
    found = []
    for (width, n_features), dtype in product(shapes, DTYPES):
        edited = (USUAL_EDITED,) if quick and (width, n_features) == QUICK_SHAPES[-1] else EDITED
        for n_edited, n_tokens in product(edited, QUICK_TOKENS if quick else TOKENS):
            found.append(Case(width, n_features, n_tokens, n_edited, dtype))
    return [case for case in found if device != "cpu" or case.flops <= MOST_FLOPS_CPU]


@torch.no_grad()
def measure(all_cases: list[Case], device: str, quick: bool, track: Track) -> tuple[list[Row], list[str]]:
    """(rows, notes on what is left out).

    Raises:
        WrongResult: a competitor computes something else; nothing is returned about any speed.
    """
    bench = _Bench(device, quick)
    rows = [row for case in track(all_cases, "Timing") for row in bench.rows(case)]
    return rows, list(bench.notes)


class _Bench:
    """The weights of one SAE at a time, and the settings of a run."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device = device
        self.seconds = SECONDS_QUICK if quick else SECONDS
        self.most_whole_sae = MOST_FLOPS_WHOLE_SAE_QUICK if quick else MOST_FLOPS_WHOLE_SAE
        self.quick = quick
        self.notes: dict[str, None] = {}  # an ordered set
        self._weights: tuple[tuple[int, int], Weights] | None = None

    def rows(self, case: Case) -> Iterator[Row]:
        """All comparisons of a case; none if its SAE does not fit into memory."""
        shape = (case.width, case.n_features)
        needed = 3 * 8 * case.width * case.n_features
        if needed > _free_bytes(self.device):
            self.notes[f"D={case.width} F={case.n_features} is left out: it needs {needed >> 30} GiB of memory"] = None
            return
        if self._weights is None or self._weights[0] != shape:
            self._weights = None  # the old ones go before the new ones come
            self._weights = shape, Weights.random(*shape, COLD_BYTES, self.device, torch.float32)
        weights = self._weights[1]
        generator = torch.Generator(self.device).manual_seed(case.n_tokens)
        h = torch.randn(case.n_tokens, case.width, generator=generator, device=self.device).to(DTYPES[case.dtype])
        plans = weights.plans(case.n_edited, 2 * timing.MOST_ROUNDS)
        yield from self._against_gathered(case, plans, h)
        if case.n_edited == USUAL_EDITED:
            yield from self._against_others(case, weights, plans[0], h)

    def _against_gathered(self, case: Case, plans: list[SteeringPlan], h: Tensor) -> Iterator[Row]:
        gate.check({OURS: competitors.ours(plans[0]), GATHERED: competitors.gathered(plans[0])}, plans[0], h, case)
        # each on rows of its own half of the plans: what one has read is not warm for the other
        half = len(plans) // 2
        for cache, ours, theirs in (("hot", plans[:1], plans[:1]), ("cold", plans[:half], plans[half:])):
            if cache == "cold":
                timing.flush(self.device)
            calls = {
                OURS: [partial(competitors.ours(plan), h) for plan in ours],
                GATHERED: [partial(competitors.gathered(plan), h) for plan in theirs],
            }
            yield self._row(case, cache, calls, h)

    def _against_others(self, case: Case, weights: Weights, plan: SteeringPlan, h: Tensor) -> Iterator[Row]:
        ours = competitors.ours(plan)
        for name, make in self._others(case, weights, plan).items():
            reason = competitors.left_out(name, self.device)
            if reason:
                self.notes[f"{name} is left out: {reason}"] = None
                continue
            theirs = make()
            gate.check({OURS: ours, name: theirs}, plan, h, case)
            calls = {OURS: [partial(ours, h)], name: [partial(theirs, h)]}
            yield self._row(case, "hot", calls, h, timing.LEAST_ROUNDS if name == COMPILED else WHOLE_SAE_ROUNDS)

    def _others(self, case: Case, weights: Weights, plan: SteeringPlan) -> dict[str, Callable[[], Transform]]:
        others: dict[str, Callable[[], Transform]] = {}
        if self.quick:
            self.notes[f"{COMPILED} is left out of --quick: compiling it takes most of a minute"] = None
        else:
            others[COMPILED] = lambda: competitors.compiled(plan)
        too_long = 4 * case.n_tokens * case.width * case.n_features > self.most_whole_sae
        if too_long or (self.quick and case.dtype != "fp32"):  # in bf16 they compute the same in fp32
            return others
        m = case.n_edited
        return others | {
            ENCODE_ALL: lambda: competitors.encode_all(weights, m),
            SAELENS_ARITHMETIC: lambda: competitors.saelens_arithmetic(weights, m),
            SAELENS_CLASS: lambda: competitors.saelens_class(weights, m),
        }

    def _row(
        self, case: Case, cache: str, calls: dict[str, list], h: Tensor, least_rounds: int = timing.LEAST_ROUNDS
    ) -> Row:
        other = next(name for name in calls if name != OURS)
        times = timing.interleave(calls, clock=self._clock(other), seconds=self.seconds, least_rounds=least_rounds)
        return Row(
            op="steer",
            backend=_dispatch.resolve("auto", h, "steer"),
            competitor=other,
            device=self.device,
            D=case.width,
            F=case.n_features,
            N=case.n_tokens,
            M=case.n_edited,
            K=None,
            dtype=case.dtype,
            row_dtype="fp32",
            cache=cache,
            ours=timing.Spread.of(times[OURS]),
            theirs=timing.Spread.of(times[other]),
            ratio=timing.Ratio.of(times[other], times[OURS]),
            rounds=len(times[OURS]),
            bytes=case.n_bytes,
            flops=case.flops,
            limit_us=case.limit_us(self.device, cache),
            correct=True,
        )

    def _clock(self, other: str) -> timing.Clock:
        if self.device == "cpu":
            return timing.wall_clock
        return timing.event_clock if other == SAELENS_CLASS else timing.GraphClock()


def _free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _shape(text: str) -> tuple[int, int]:
    width, n_features = text.split(",")
    return int(width), int(n_features)


def main() -> int:
    """Without the command line's libraries, for a machine that lacks them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds: 2 to 3 minutes on 2 cores")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--shape", action="append", default=[], type=_shape, help="D,F in place of the usual shapes; repeatable"
    )
    options = parser.parse_args()
    wanted = cases(options.quick, options.device, options.shape)
    try:
        rows, notes = measure(wanted, options.device, options.quick, lambda items, what: items)
    except gate.WrongResult as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report.print_rows(rows)
    print("\n".join(notes))
    if options.json:
        report.write_json([row.as_json() for row in rows], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
