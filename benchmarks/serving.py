"""Throughput of vLLM with steered requests beside vLLM as it was published: python -m sparsesteer.benchmarks.serving

The engines live in processes of their own on one core and take turns, a step each, so that whatever else the machine
does meets all. Answers are compared first: where they are wrong no speed is shown.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sparsesteer.benchmarks import report
from sparsesteer.benchmarks.gate import WrongResult
from sparsesteer.benchmarks.serving_engine import Answers, Engine, Load, Spent, Start
from sparsesteer.benchmarks.serving_rows import (
    CASES,
    LOADED,
    PUBLISHED,
    STEERING,
    VANILLA,
    Arm,
    Case,
    Row,
    Times,
    print_table,
    row_of,
)
from sparsesteer.benchmarks.serving_setup import SETUPS, Setup

CHECKED = 4  # requests whose answers Hugging Face gives too
HOTWIRE = (
    "hotwire-vllm 0.1.2 is left out: it arms GPUModelRunner.load_model, which the runner for CPUs overrides, and its "
    "kernel is Triton's, which has no backend for CPUs"
)


def take_turns(engines: Sequence[Engine], loads: Sequence[Load]) -> list[list[Spent]]:
    """What each engine spends on its load: on taking it, and on every step; nobody is always first."""
    spent = [[engine.begin(load)] for engine, load in zip(engines, loads, strict=True)]
    running = set(range(len(engines)))
    while running:
        for i in sorted(running, reverse=len(spent[0]) % 2 == 0):
            step, more = engines[i].step()
            spent[i].append(step)
            if not more:
                running.remove(i)
    return spent


def check(case: Case, setup: Setup, engines: Mapping[str, Engine]) -> None:
    """Compare answers.

    Raises:
        WrongResult: unsteered ones are not bit for bit vLLM's own, or steered ones not Hugging Face's.
    """
    published = _answers(case, VANILLA, setup, engines)
    for arm in case.arms:
        found = _answers(case, arm, setup, engines)
        if arm.n_specs == 0:
            if found != published:
                raise WrongResult(f"{arm.engine}: unsteered answers are not those of vLLM as published")
            continue
        load = case.load(arm, 0, setup.vocabulary)
        want = setup.expected(load.prompts[:CHECKED], load.wishes[:CHECKED], case.new_tokens)
        if found.tokens[:CHECKED] != want:
            raise WrongResult(f"{arm.engine}, {arm.n_specs} specs: answers are not those of Hugging Face under a hook")
        if found.tokens == published.tokens:
            raise WrongResult("steering changes no answer, so that comparing them says nothing")


def _answers(case: Case, arm: Arm, setup: Setup, engines: Mapping[str, Engine]) -> Answers:
    engine = engines[arm.engine]
    take_turns([engine], [case.load(arm, 0, setup.vocabulary, logprobs=True)])
    return engine.answers()


def measure(case: Case, setup: Setup, engines: Mapping[str, Engine], rounds: int, rest: float) -> list[Row]:
    """Time every arm once in a round, each beside vLLM as published, and rest for so many seconds."""
    for arm in (VANILLA, *case.arms):  # first requests put specs into the banks
        take_turns([engines[arm.engine]], [case.load(arm, 0, setup.vocabulary)])
    times: dict[Arm, list[Times]] = {arm: [] for arm in case.arms}
    for turn in range(1, rounds + 1):
        for arm in _rotated(case.arms, turn):
            pair = engines[PUBLISHED], engines[arm.engine]
            loads = [case.load(each, turn, setup.vocabulary) for each in (VANILLA, arm)]
            pair[1].own_seconds()
            published, steered = take_turns(pair, loads)
            times[arm].append(Times(published, steered, pair[1].own_seconds()))
        time.sleep(rest)
    _check_all_were_steered(engines[STEERING])
    one = next((times[arm] for arm in case.arms if arm.n_specs == 1), None)
    return [row_of(case, setup, arm, found, one if arm.n_specs > 1 else None) for arm, found in times.items()]


def _check_all_were_steered(engine: Engine) -> None:
    unsteered = engine.status()["unsteered_requests"]
    if unsteered:
        raise WrongResult(f"{unsteered} requests were not steered")


def _rotated(arms: Sequence[Arm], turn: int) -> list[Arm]:
    first = turn % len(arms)
    return [*arms[first:], *arms[:first]]


def starts(setup: Setup, case: Case) -> dict[str, Start]:
    """How each engine of a case is started; all on one core, with the same settings."""
    core = str(max(os.sched_getaffinity(0)))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = core
    options = {
        "model": str(setup.model), "skip_tokenizer_init": True, "dtype": "float32", "enforce_eager": True,
        "max_model_len": 256, "max_num_seqs": case.n_requests,
    }  # fmt: skip
    plugins = {PUBLISHED: "", LOADED: "sparsesteer", STEERING: "sparsesteer"}
    used = {PUBLISHED, *(arm.engine for arm in case.arms)}
    return {
        name: Start(plugins[name], options | ({"additional_config": setup.steering()} if name == STEERING else {}))
        for name in plugins
        if name in used
    }


def run(setup: Setup, case: Case, rounds: int, rest: float) -> list[Row]:
    """Start the engines, compare their answers, time them, end them."""
    engines = {}
    try:
        for name, start in starts(setup, case).items():
            engines[name] = Engine(start)
            engines[name].wait()
        check(case, setup, engines)
        return measure(case, setup, engines, rounds, rest)
    finally:
        for engine in engines.values():
            engine.close()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=list(SETUPS), help="repeatable; all if not given")
    parser.add_argument("--case", action="append", choices=list(CASES), help="repeatable; all if not given")
    parser.add_argument("--rounds", type=int, default=12, help="of a case")
    parser.add_argument("--rest", type=float, default=0, help="seconds after each round, for others on the machine")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as many as an engine has; the rows say so
    rows: list[Row] = []
    try:
        for name in options.model or SETUPS:
            with tempfile.TemporaryDirectory() as folder:
                setup = SETUPS[name](Path(folder))
                for case in options.case or CASES:
                    rows += run(setup, CASES[case], options.rounds, options.rest)
    except WrongResult as error:
        print(f"error: {error}; no speed is shown", file=sys.stderr)
        return 1
    print_table(rows)
    print(HOTWIRE)
    if options.json:
        report.write_json([row.as_json() for row in rows], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
