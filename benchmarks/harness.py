"""What the benchmark of every op shares: a case is checked, then timed beside each contender, and gives rows."""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sparsesteer import _dispatch
from sparsesteer.benchmarks import gate, memory, report, timing
from sparsesteer.benchmarks.case import DTYPES, Case
from sparsesteer.benchmarks.gate import OURS
from sparsesteer.benchmarks.report import Row
from sparsesteer.benchmarks.weights import Weights

COLD_BYTES = 160 << 20  # of both matrices; several times a last-level cache
SECONDS, SECONDS_QUICK = 0.3, 0.1  # of a comparison, once it has the least number of rounds
LONG_FLOPS, LONG_ROUNDS = 1e9, 5  # a call of more operations has fewer rounds
FAR_FLOPS, FAR_ROUNDS = 10, 3  # so has a contender that computes so many times more than it must
MOST_FLOPS_CPU = {False: 2e11, True: 5e9}  # of any call there, by whether the run is quick
WEIGHT_COPIES = 3  # of an SAE in fp32 that competitors hold together at most

Track = Callable[[Iterable, str], Iterable]  # hands items on and shows the progress


@dataclass(frozen=True)
class Contender:
    """Somebody else's way to do the same."""

    name: str
    make: Callable[[], timing.Calls]  # called right before the timing; its memory goes right after
    flops: int = 0  # of a call
    absent: Callable[[], str] = str  # why it cannot take part; empty if it can
    in_graph: bool = True  # False if a CUDA graph cannot hold it
    compiles: bool = False  # takes most of a minute before the first call


@dataclass(frozen=True)
class Race:
    """Ours and its contenders on one case."""

    ours: timing.Calls
    contenders: Sequence[Contender]
    check: Callable[[str, Any], None]  # of a name and its result; raises gate.WrongResult
    cache: str = "hot"


@dataclass
class Run:
    """The settings of a run, its notes on what is left out, and the weights in use."""

    device: str
    quick: bool
    compiles: bool = False  # torch.compile takes part
    notes: dict[str, None] = field(default_factory=dict)  # an ordered set
    _weights: tuple[tuple, Weights] | None = None

    def note(self, text: str) -> None:
        """Say once what is left out."""
        self.notes[text] = None

    def weights(self, case: Case, least_bytes: int) -> Weights | None:
        """A random SAE of the case's shape, one at a time; None if it does not fit into memory."""
        key = case.D, case.F, case.row_dtype
        if self._weights is None or self._weights[0] != key:
            self._weights = None  # the old ones go before the new ones come
            gc.collect()
            needed = WEIGHT_COPIES * 8 * case.D * case.F
            if needed > _free_bytes(self.device):
                self.note(f"D={case.D} F={case.F} is left out: it needs {needed >> 30} GiB of memory")
                return None
            dtype = DTYPES[case.row_dtype]
            self._weights = key, Weights.random(case.D, case.F, least_bytes, self.device, dtype)
        return self._weights[1]

    def too_long(self, flops: int) -> bool:
        """True for a call that would keep a CPU for seconds."""
        return self.device == "cpu" and flops > MOST_FLOPS_CPU[self.quick]

    def left_out(self, contender: Contender) -> str:
        """Why a contender does not take part in this run; empty if it does."""
        if contender.compiles and not self.compiles:
            return "compiling it takes most of a minute for each case"
        if self.too_long(contender.flops):
            return f"a call takes over {MOST_FLOPS_CPU[self.quick]:.0e} operations on the larger shapes"
        return contender.absent()  # last: it may import a large package


@dataclass(frozen=True)
class Bench:
    """The benchmark of one op."""

    op: str
    cases: Callable[[bool, str], list[Case]]  # (quick, device); in the order in which weights are made
    races: Callable[[Case, Weights, Run], Iterator[Race]]  # the first of them with all contenders
    contenders: tuple[str, ...]  # the names of all who may take part
    cold_bytes: int = 0  # of weights at least, where buffers are rotated


def tokens(case: Case, device: str) -> Tensor:
    """h [N, D], the same for the same N."""
    generator = torch.Generator(device).manual_seed(case.N)
    return torch.randn(case.N, case.D, generator=generator, device=device).to(DTYPES[case.dtype])


@torch.no_grad()
def measure(bench: Bench, cases: Sequence[Case], run: Run, track: Track) -> list[Row]:
    """The rows of all cases.

    Raises:
        WrongResult: somebody computes something else; nothing is returned about any speed.
    """
    rows: list[Row] = []
    for case in track(cases, f"Timing {bench.op}"):
        weights = None if run.too_long(case.flops) else run.weights(case, bench.cold_bytes)
        if weights is not None:
            rows += [row for race in bench.races(case, weights, run) for row in _rows(case, race, run)]
    return rows


def _rows(case: Case, race: Race, run: Run) -> Iterator[Row]:
    result, extra = memory.peak_extra(race.ours[0], run.device)
    race.check(OURS, result)
    for contender in race.contenders:
        reason = run.left_out(contender)
        if reason:
            run.note(f"{contender.name} is left out: {reason}")
        else:
            yield _compare(case, race, contender, run, extra)


def _compare(case: Case, race: Race, contender: Contender, run: Run, extra: int | None) -> Row:
    theirs = contender.make()
    race.check(contender.name, theirs[0]())
    if race.cache == "cold":
        timing.flush(run.device)
    times = timing.interleave(
        {OURS: race.ours, contender.name: theirs},
        clock=_clock(case, contender, run.device),
        seconds=SECONDS_QUICK if run.quick else SECONDS,
        least_rounds=_least_rounds(case.flops, contender.flops),
    )
    return Row(
        case=case,
        backend=_backend(case, race.ours[0], run.device),
        competitor=contender.name,
        device=run.device,
        cache=race.cache,
        ours=timing.Spread.of(times[OURS]),
        theirs=timing.Spread.of(times[contender.name]),
        ratio=timing.Ratio.of(times[contender.name], times[OURS]),
        rounds=len(times[OURS]),
        limit_us=case.limit_us(run.device, race.cache),
        peak_extra_bytes=extra,
        correct=True,
    )


def _least_rounds(flops: int, theirs: int) -> int:
    if max(flops, theirs) <= LONG_FLOPS:
        return timing.LEAST_ROUNDS
    return FAR_ROUNDS if theirs > FAR_FLOPS * flops else LONG_ROUNDS


def _backend(case: Case, call: timing.Call, device: str) -> str:
    """Which one serves a call. On CUDA that depends on the sizes of all arguments, so a call is watched."""
    if device == "cpu":
        return _dispatch.resolve("auto", torch.empty(0, dtype=DTYPES[case.dtype]), case.op)
    with mock.patch.object(_dispatch, "implementation", wraps=_dispatch.implementation) as looked_up:
        call()
    _, backend, _ = looked_up.call_args.args
    return backend


def _clock(case: Case, contender: Contender, device: str) -> timing.Clock:
    if device == "cpu":  # a long call of ours finds nothing in the cache that another of its kind left there
        return timing.stopwatch if case.flops > LONG_FLOPS else timing.wall_clock
    return timing.GraphClock() if contender.in_graph else timing.event_clock


def _free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # what the page cache holds is free too
        kilobytes = dict(line.split()[:2] for line in meminfo.read_text().splitlines())["MemAvailable:"]
        return int(kilobytes) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def only(cases: Iterable[Case], shapes: Sequence[tuple[int, int]], n_tokens: Sequence[int]) -> list[Case]:
    """Those of the given (D, F) and N; all where none is given."""
    return [
        case for case in cases if (not shapes or (case.D, case.F) in shapes) and (not n_tokens or case.N in n_tokens)
    ]


def _shape(text: str) -> tuple[int, int]:
    width, n_features = text.split(",")
    return int(width), int(n_features)


def main(*benches: Bench) -> int:
    """A command line without the libraries of the package's own, for a machine that lacks them."""
    parser = argparse.ArgumentParser(description="Compare the speed of " + ", ".join(bench.op for bench in benches))
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--compile", action="store_true", help="torch.compile takes part")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", action="append", default=[], type=_shape, help="only this D,F; repeatable")
    parser.add_argument("--tokens", action="append", default=[], type=int, help="only this N; repeatable")
    options = parser.parse_args()
    run = Run(options.device, options.quick, options.compile)
    rows: list[Row] = []
    try:
        for bench in benches:
            for case in only(bench.cases(options.quick, options.device), options.shape, options.tokens):
                rows += measure(bench, [case], run, lambda items, what: items)
                if options.json and rows:  # a run that is cut short leaves what it has
                    report.write_json([row.as_json() for row in rows], options.json)
    except gate.WrongResult as error:
        if options.json:
            options.json.unlink(missing_ok=True)
        print(f"error: {error}", file=sys.stderr)
        return 1
    report.print_rows(rows)
    print("\n".join(run.notes))
    return 0
