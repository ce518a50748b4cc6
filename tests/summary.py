"""Add up the reports that ``conftest.py`` wrote: python tests/summary.py REPORT.json ...

Prints how many tests of each kind ran and why others did not, each suite's CPU time and the tests that took most of it.
Exits with 1 if a test or a whole suite failed.
"""

import json
import sys
from collections import Counter
from pathlib import Path

OUTCOMES = ("passed", "failed", "skipped")
KINDS = ("plain", "native", "triton", "gpu", "vllm", "browser")
LONGEST = 10  # tests that are named
NO_TESTS = 5  # pytest's exit status where nothing was selected


def read(path: Path) -> tuple[list[dict], str]:
    """The outcomes of one suite, and what went wrong with the suite as a whole."""
    if not path.is_file():
        return [], f"suite {path.stem} left no report: it crashed or did not start"
    report = json.loads(path.read_text())
    outcomes, status = report["outcomes"], report["exit_status"]
    failed = any(outcome["outcome"] == "failed" for outcome in outcomes)
    if status in (0, NO_TESTS) or failed:
        return outcomes, ""
    return outcomes, f"suite {path.stem} ended with exit status {status}"


def table(outcomes: list[dict]) -> list[str]:
    """A line for each kind of test; a test of two kinds counts in both."""
    counts = Counter((kind, o["outcome"]) for o in outcomes for kind in o["markers"] or ["plain"])
    lines = ["".join(f"{word:>9}" for word in ("", *OUTCOMES))]
    lines += [f"{kind:>9}" + "".join(f"{counts[kind, o]:>9}" for o in OUTCOMES) for kind in KINDS]
    reasons = Counter(o["reason"] for o in outcomes if o["outcome"] == "skipped")
    return lines + [f"skipped {n}: {reason}" for reason, n in reasons.most_common()]


def cpu_time(paths: list[Path]) -> list[str]:
    """A line for all suites, and one for each of the longest tests."""
    found = {path.stem: json.loads(path.read_text())["cpu_seconds"] for path in paths if path.is_file()}
    lines = ["CPU minutes: " + ", ".join(f"{name} {sum(tests.values()) / 60:.1f}" for name, tests in found.items())]
    tests = Counter({test: seconds for some in found.values() for test, seconds in some.items()})
    return lines + [f"{seconds:>7.0f} s {test}" for test, seconds in tests.most_common(LONGEST)]


def main(paths: list[str]) -> int:
    """Print the summary; 1 if anything failed."""
    suites = [read(Path(path)) for path in paths]
    outcomes = [outcome for suite, _ in suites for outcome in suite]
    problems = [problem for _, problem in suites if problem]
    totals = Counter(outcome["outcome"] for outcome in outcomes)
    print("\n".join([*table(outcomes), *cpu_time([Path(path) for path in paths]), *problems]))
    print(", ".join(f"{totals[outcome]} {outcome}" for outcome in OUTCOMES))
    return 1 if problems or totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
