"""The summary of ``make test`` must fail when anything failed, even a suite that never reported."""

import json

import pytest
import summary


@pytest.fixture
def report(tmp_path):
    def write(name, exit_status, *outcomes):
        path = tmp_path / f"{name}.json"
        entries = [{"markers": markers, "outcome": o, "reason": reason} for markers, o, reason in outcomes]
        seconds = {f"{name}.py::test_{number}": 60.0 * number for number in range(len(outcomes))}
        path.write_text(json.dumps({"exit_status": exit_status, "outcomes": entries, "cpu_seconds": seconds}))
        return str(path)

    return write


def test_adds_up_suites_and_names_the_skips(report, capsys):
    main = report("main", 0, ([], "passed", ""), (["native"], "passed", ""), (["gpu"], "skipped", "no CUDA device"))
    triton = report("triton", 0, (["triton", "gpu"], "skipped", "no CUDA device"), (["triton"], "passed", ""))
    assert summary.main([main, triton]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:5]] == [
        ["plain", "1", "0", "0"],
        ["native", "1", "0", "0"],
        ["triton", "1", "0", "1"],
        ["gpu", "0", "0", "2"],
    ]
    assert "skipped 2: no CUDA device" in lines
    assert "CPU minutes: main 3.0, triton 1.0" in lines
    assert [line for line in lines if "::" in line][:2] == ["    120 s main.py::test_2", "     60 s main.py::test_1"]
    assert lines[-1] == "3 passed, 0 failed, 2 skipped"


def test_a_failed_test_fails(report, capsys):
    assert summary.main([report("main", 1, ([], "failed", ""), ([], "passed", ""))]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"


def test_a_suite_without_a_report_fails(report, tmp_path, capsys):
    assert summary.main([report("main", 0, ([], "passed", "")), str(tmp_path / "triton.json")]) == 1
    assert "suite triton left no report" in capsys.readouterr().out


def test_a_suite_that_was_cut_off_fails(report, capsys):
    assert summary.main([report("main", 2, ([], "passed", ""))]) == 1
    assert "exit status 2" in capsys.readouterr().out
