"""Settings of every test process, and a record of each outcome and its CPU time for ``tests/summary.py``."""

import json
import os
from pathlib import Path

import pytest
import torch

MARKERS = ("native", "triton", "gpu", "vllm", "browser")

torch.use_deterministic_algorithms(True, warn_only=True)  # also fills torch.empty with NaN
torch.set_num_threads(2)

_outcomes: dict[str, dict] = {}
_cpu_seconds: dict[str, float] = {}
_counted = sum(os.times()[:4])


def _one_thread():
    """For tiny models: two threads wait for each other longer than they work, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


one_thread = pytest.fixture(_one_thread)
one_thread_throughout = pytest.fixture(_one_thread, scope="module")  # a module's own fixtures included


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _count_cpu(report.nodeid)
    if report.when == "call" or report.outcome != "passed":
        _keep(report, [name for name in MARKERS if item.get_closest_marker(name)])
    return report


def pytest_collectreport(report):
    if report.outcome != "passed":  # a module that skips itself or cannot be imported
        _keep(report, [])


def pytest_sessionfinish(session, exitstatus):
    path = os.environ.get("SPARSESTEER_TEST_REPORT")
    if path:
        report = {"exit_status": int(exitstatus), "outcomes": list(_outcomes.values()), "cpu_seconds": _cpu_seconds}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(report))


def _count_cpu(nodeid):
    """Of this process and those it waited for, since the last count; it tells long tests on busy machines too."""
    global _counted
    now = sum(os.times()[:4])
    _cpu_seconds[nodeid] = _cpu_seconds.get(nodeid, 0.0) + now - _counted
    _counted = now


def _keep(report, markers):
    if _outcomes.get(report.nodeid, {}).get("outcome") == "failed":  # a later phase does not mend it
        return
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    reason = getattr(report, "wasxfail", reason)
    _outcomes[report.nodeid] = {"markers": markers, "outcome": report.outcome, "reason": reason}
