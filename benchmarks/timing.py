"""Times competitors in one process, in turns, and says how sure the ratios are."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]
# the calls a competitor takes in turn, each on its own buffers: one call for hot buffers, many for cold ones
Calls = Sequence[Call]
# microseconds of one call, in the given round
Clock = Callable[[Calls, int], float]

LEAST_ROUNDS, MOST_ROUNDS = 15, 200
GRAPH_CALLS = 20
RESAMPLES = 2000
FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Spread:
    """Percentiles of the time of one call, microseconds."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, times: Sequence[float]) -> "Spread":
        """The percentiles of at least one time."""
        return cls(*torch.tensor(times, dtype=torch.float64).quantile(_double(0.2, 0.5, 0.8)).tolist())


@dataclass(frozen=True)
class Ratio:
    """Median of ratios paired round by round, or ratio of sums of pairs; and its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numerator: Sequence[float], denominator: Sequence[float]) -> "Ratio":
        """numerator[i] / denominator[i] of every round i."""
        ratios = torch.tensor(numerator, dtype=torch.float64) / torch.tensor(denominator, dtype=torch.float64)
        low, high = median_interval(ratios)
        return cls(ratios.quantile(0.5).item(), low, high)

    @classmethod
    def of_sums(cls, numerator: Sequence[float], denominator: Sequence[float]) -> "Ratio":
        """sum(numerator) / sum(denominator) of pairs of different weight, with a 95 % bootstrap over the pairs."""
        above, below = (torch.tensor(each, dtype=torch.float64) for each in (numerator, denominator))
        picks = _resampled(len(above))
        low, high = (above[picks].sum(1) / below[picks].sum(1)).quantile(_double(0.025, 0.975)).tolist()
        return cls((above.sum() / below.sum()).item(), low, high)


def median_interval(values: Tensor, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % bootstrap interval of the median of values [n], with a fixed seed."""
    medians = values.double()[_resampled(len(values), resamples)].quantile(0.5, dim=-1)
    low, high = medians.quantile(_double(0.025, 0.975)).tolist()
    return low, high


def _resampled(n: int, resamples: int = RESAMPLES) -> Tensor:
    """The members of each resample, [resamples, n]."""
    return torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(0))


def wall_clock(calls: Calls, turn: int) -> float:
    """One call on the CPU. A single call is made once untimed: the competitors' turns in between cooled its buffers."""
    if len(calls) == 1:
        calls[0]()
    return stopwatch(calls, turn)


def stopwatch(calls: Calls, turn: int) -> float:
    """One call on the CPU."""
    call = calls[turn % len(calls)]
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e6


class GraphClock:
    """Calls on a CUDA device, without launch overhead: replays of one graph that holds a competitor's calls.

    Many calls are meant to find their buffers cold: what an earlier replay left in the cache is flushed.
    """

    def __init__(self) -> None:
        # by identity of the calls, which are kept so that none can take the place of another
        self._graphs: dict[int, tuple[Calls, torch.cuda.CUDAGraph, int]] = {}

    def __call__(self, calls: Calls, turn: int) -> float:
        if id(calls) not in self._graphs:
            self._graphs[id(calls)] = (calls, *_captured(calls))
        _, graph, n_calls = self._graphs[id(calls)]
        if len(calls) > 1:
            flush("cuda")
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        return started.elapsed_time(ended) * 1e3 / n_calls


def _captured(calls: Calls) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of the first calls (one call is repeated), and how many it holds."""
    several = list(calls[:GRAPH_CALLS]) if len(calls) > 1 else [*calls] * GRAPH_CALLS
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels compile and libraries allocate outside of the graph
        for _ in range(3):
            several[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in several:
            call()
    return graph, len(several)


def event_clock(calls: Calls, turn: int) -> float:
    """One eager call on a CUDA device, launch overhead included: for calls that a graph cannot hold."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    calls[turn % len(calls)]()
    ended.record()
    ended.synchronize()
    return started.elapsed_time(ended) * 1e3


def flush(device: str) -> None:
    """Leave nothing in the caches but a buffer that nobody reads."""
    torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device).fill_(1)


def interleave(
    competitors: Mapping[str, Calls],
    *,
    clock: Clock,
    seconds: float,
    least_rounds: int = LEAST_ROUNDS,
    most_rounds: int = MOST_ROUNDS,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Microseconds of a call, by competitor and round: paired, and nobody is always first.

    Args:
        seconds: no round is begun later than this, after the least number of rounds.
    """
    names = list(competitors)
    for name in names:  # first calls compile and allocate
        clock(competitors[name], -1)
    times: dict[str, list[float]] = {name: [] for name in names}
    deadline = now() + seconds
    for turn in range(most_rounds):
        if turn >= least_rounds and now() >= deadline:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(clock(competitors[name], turn))
    return times


def _double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
