"""One control, one setting, one split: answers, scores, and a line in the log of trials."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparsesteer.methods.baselines import Control
from sparsesteer.methods.evaluation.json_lines import JsonLines
from sparsesteer.methods.evaluation.prefilled import PrefilledAnswerer
from sparsesteer.methods.evaluation.scores import hits
from sparsesteer.methods.spare.conflicts import Conflict

Setting = Mapping[str, Any]
BATCH = 128


@dataclass(frozen=True)
class Trial:
    """What a method reached on a split, means over its seeds.

    Attributes:
        method, toward, setting: what was tried.
        em: of the side that it steers toward.
        em_other: of the other side.
        seconds: that it took.
        why: "search" for the choice of a setting, "scan" for a picture.
    """

    method: str
    toward: str
    setting: dict[str, Any]
    em: float
    em_other: float
    seconds: float
    why: str = "search"

    def is_of(self, method: str, toward: str, setting: Setting) -> bool:
        """Whether this was tried."""
        return (self.method, self.toward, self.setting) == (method, toward, json.loads(json.dumps(setting)))


@dataclass
class TrialLog:
    """All trials, each on disk before the next one begins."""

    lines: JsonLines
    trials: list[Trial]

    @classmethod
    def opened(cls, path: str | os.PathLike) -> "TrialLog":
        """With what is in the file already. Raises ValueError for a file of something else."""
        lines = JsonLines.opened(path)
        try:
            return cls(lines, [Trial(**row) for row in lines.rows])
        except TypeError as error:
            raise ValueError(f"{path} is no log of trials: {error}") from error

    def add(self, trial: Trial) -> None:
        """Keep it and write it."""
        self.lines.add(asdict(trial))
        self.trials.append(trial)

    def found(self, method: str, toward: str, setting: Setting) -> Trial | None:
        """The latest trial of this setting, if there was one."""
        return next((trial for trial in reversed(self.trials) if trial.is_of(method, toward, setting)), None)

    def best(self, method: str, toward: str) -> Trial | None:
        """The trial of the highest ``em`` among those of the search, the first of equals."""
        some = [t for t in self.trials if (t.method, t.toward, t.why) == (method, toward, "search")]
        return max(some, key=lambda trial: trial.em, default=None)


def answers_of(
    control: Control, answerer: PrefilledAnswerer, conflicts: Sequence[Conflict], toward: str, batch: int = BATCH
) -> list[str]:
    """One answer each; those with answers of about the same length are asked together."""
    order = sorted(range(len(conflicts)), key=lambda place: answerer.answer_length(conflicts[place]))
    answers = [""] * len(conflicts)
    for first in range(0, len(order), batch):
        places = order[first : first + batch]
        some = [conflicts[place] for place in places]
        answerer.prepare([control.shown(conflict, toward).prompt for conflict in some])
        for place, answer in zip(places, control.answers(answerer, some, toward), strict=True):
            answers[place] = answer
    return answers


def tried(
    control: Control,
    answerer: PrefilledAnswerer,
    asked: Mapping[int, Sequence[Conflict]],
    method: str,
    toward: str,
    setting: Setting,
    in_context: bool = False,
    why: str = "search",
) -> Trial:
    """One trial on prompts by seed."""
    begun = time.perf_counter()
    ours, others = [], []
    other = "memory" if toward == "context" else "context"
    for seed, conflicts in asked.items():
        answers = answers_of(control.with_seed(seed), answerer, conflicts, toward)
        ours.append(hits(conflicts, answers, toward, in_context).mean())
        others.append(hits(conflicts, answers, other, in_context).mean())
    seconds = round(time.perf_counter() - begun, 2)
    plain = json.loads(json.dumps(dict(setting)))
    return Trial(method, toward, plain, sum(ours) / len(ours), sum(others) / len(others), seconds, why)


def searched(
    grid: Mapping[str, Sequence[Any]], start: Setting, budget: int, score: Callable[[Setting], float]
) -> dict[str, Any]:
    """The best of at most ``budget`` settings, along one axis after the other.

    From ``start`` on all values of the first axis are tried and the best one is kept, then those of the next, and round
    again, until the budget is spent or a round changes nothing. Of equal scores the first one stays.
    """
    best = dict(start)
    scores = [(best, score(best))]

    def scored(setting: dict[str, Any]) -> float | None:
        known = next((each for each in scores if each[0] == setting), None)
        if known is None and len(scores) < budget:
            known = setting, score(setting)
            scores.append(known)
        return None if known is None else known[1]

    while True:
        before = best
        for axis, values in grid.items():
            for value in values:
                candidate = {**best, axis: value}
                found, reached = scored(candidate), scored(best)
                if found is not None and reached is not None and found > reached:
                    best = candidate
        if best == before:
            return best
