"""Measures block sizes of the Triton kernels on this GPU and writes the table that ``kernels/tunings.py`` reads."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from sparsesteer import ops
from sparsesteer.benchmarks import gate, harness, timing
from sparsesteer.benchmarks.case import Case
from sparsesteer.benchmarks.harness import Run, Track
from sparsesteer.kernels import tunings
from sparsesteer.kernels.tiling import MIN_DOT, SteerTiling, steer_tiling
from sparsesteer.plans import SteeringPlan

WIDTHS, TOKENS, EDITED = (576, 2304, 4096), (1, 8, 32, 128, 512, 4096), (16, 64, 256, 1024)
FIELDS = {"shrink_rows": (8, 16, 32, 64), "expand_width": (16, 32, 64, 128), "warps": (4, 8)}
LEAST_GAIN = 1.03  # less may be noise


def write_table(target: Path | None, track: Track) -> Path:
    """Tune ``steer`` on this GPU; the table goes to ``target``, or into the package. Returns where it went.

    Raises:
        WrongResult: some block sizes make the kernel compute something else.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    entries = tunings.entries("steer", device)
    entries.clear()
    run = Run("cuda", quick=True)
    cases = [Case("steer", width, 4608, n, M=m) for width, n, m in product(WIDTHS, TOKENS, EDITED)]
    for case in track(cases, "Tuning steer"):
        best = _best(case, run, entries)
        if best:
            entries[_class(case)] = best
    path = target or tunings.file_of(torch.cuda.get_device_name(device))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"steer": entries}, indent=1, sort_keys=True) + "\n")
    return path


@torch.no_grad()
def _best(case: Case, run: Run, entries: tunings.Entries) -> dict[str, int]:
    """The fastest overrides, one field after the other; none where the rule is hard to beat."""
    weights = run.weights(case, 0)
    assert weights is not None, "the smallest SAE does not fit"
    h, plan = harness.tokens(case, run.device), weights.plans(case.M, 1)[0]
    check = gate.edited_rows(plan, h, case).check
    base = steer_tiling(case.N, case.M, case.D, case.D)
    chosen: dict[str, int] = {}
    fastest = _microseconds(plan, h, check)
    for overrides in _candidates(base, chosen):
        entries[_class(case)] = overrides
        try:
            time = _microseconds(plan, h, check)
        except OutOfResources:
            continue
        finally:
            del entries[_class(case)]
        if time * LEAST_GAIN < fastest:
            fastest = time
            chosen.update(overrides)
    return chosen


def _candidates(base: SteerTiling, chosen: dict[str, int]) -> Iterator[dict[str, int]]:
    """Every value of a field beside what was chosen for those before it."""
    for name, values in FIELDS.items():
        for value in values:
            legal = base.tokens == 1 or name == "warps" or value >= MIN_DOT
            if legal and value != getattr(base, name):
                yield chosen | {name: value}


def _microseconds(plan: SteeringPlan, h: Tensor, check: Callable[[str, Tensor], None]) -> float:
    check(gate.OURS, ops.steer(h, plan, backend="triton"))
    call = [partial(ops.steer, h, plan, backend="triton")]
    times = timing.interleave({gate.OURS: call}, clock=timing.GraphClock(), seconds=0)[gate.OURS]
    return timing.Spread.of(times).p50


def _class(case: Case) -> str:
    return tunings.shape_class(case.N, case.M, case.D, case.D)
