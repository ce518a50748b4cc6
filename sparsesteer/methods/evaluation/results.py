"""The answers of a study as measures: a table of every method, what was chosen, and the evidence beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsesteer.methods.evaluation.scores import (
    MEASURES,
    Hits,
    Questions,
    as_json,
    behaviours,
    difference,
    hits,
    measured,
)
from sparsesteer.methods.evaluation.trials import TrialLog
from sparsesteer.methods.spare.conflicts import CONTEXT, MEMORY, NEITHER, Conflict
from sparsesteer.methods.spare.statistics import SIDES

UNSTEERED, OURS = "none", "SPARE"
Answers = Mapping[tuple[str, str], Mapping[int, Sequence[str]]]  # by method and direction, then by seed


def by_method(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, list[str]]]:
    """The answers of a test log, seeds in order. Those without steering stand for both directions."""
    found: dict[tuple[str, str], dict[int, list[str]]] = {}
    for line in sorted(lines, key=lambda each: each["seed"]):
        sides = SIDES if line["method"] == UNSTEERED else (line["toward"],)
        for side in sides:
            found.setdefault((line["method"], side), {})[line["seed"]] = line["answers"]
    return found


def table(answers: Answers, asked: Mapping[int, Sequence[Conflict]], in_context: bool) -> list[dict[str, Any]]:
    """A row for each method and direction: its measures, and its EM minus that without steering and minus SPARE's.

    Raises:
        ValueError: a method that lacks a seed.
    """
    seeds = list(asked)
    questions = [[conflict.question for conflict in asked[seed]] for seed in seeds]
    for (name, toward), some in answers.items():
        if list(some) != sorted(seeds):
            raise ValueError(f"{name} toward {toward} has answers for the seeds {list(some)}, not for {sorted(seeds)}")
    plain = [behaviours(asked[seed], answers[UNSTEERED, SIDES[0]][seed]) for seed in seeds]
    found = {
        (name, toward): [hits(asked[seed], some[seed], toward, in_context) for seed in seeds]
        for (name, toward), some in answers.items()
    }
    rows = []
    for (name, toward), reached in found.items():
        row: dict[str, Any] = {"method": name, "toward": toward}
        row["measures"] = as_json(measured(reached, plain, questions, toward))
        row["minus_none"] = _against(reached, found.get((UNSTEERED, toward)), questions)
        row["minus_spare"] = _against(reached, found.get((OURS, toward)), questions)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["toward"], -row["measures"][MEASURES[row["toward"]][0]]["mean"]))


def choices(log: TrialLog) -> list[dict[str, Any]]:
    """For each method and direction how many settings were tried, and the best of them."""
    runs = dict.fromkeys((trial.method, trial.toward) for trial in log.trials)
    rows = []
    for method, toward in runs:
        best = log.best(method, toward)
        if best is not None:
            count = sum((t.method, t.toward, t.why) == (method, toward, "search") for t in log.trials)
            rows.append({"method": method, "toward": toward, "trials": count, "setting": best.setting, "em": best.em})
    return rows


def shares(asked: Mapping[int, Sequence[Conflict]], answers: Mapping[int, Sequence[str]]) -> dict[str, float]:
    """How often answers came from where, over all seeds."""
    kinds = {"context": CONTEXT, "memory": MEMORY, "neither": NEITHER}
    found = [label for seed, some in asked.items() for label in behaviours(some, answers[seed]).tolist()]
    return {name: found.count(kind) / len(found) for name, kind in kinds.items()}


def _against(ours: Sequence[Hits], theirs: Sequence[Hits] | None, questions: Questions) -> dict[str, float] | None:
    if theirs is None:
        return None
    mean, low, high = difference(ours, theirs, questions)
    return {"mean": mean, "low": low, "high": high}
