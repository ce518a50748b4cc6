"""The README's speed section: what the committed results give, the fastest competitor of each case, honest marks."""

import json
import re
import subprocess

import pytest
from typer.testing import CliRunner

from sparsesteer.benchmarks import bench_encode, best, competitors, goals, harness, plot, readme, report, suite
from sparsesteer.cli import app


def record(op="encode", competitor=bench_encode.LINEAR_TOPK, ratio=2.0, **fields):
    sizes = {"D": 576, "F": 4608, "N": 1, "M": None, "K": 64, "S": None}
    rest = {
        "op": op, "competitor": competitor, "ratio": ratio, "percent_of_limit": 40.0, "activation": "topk",
        "dtype": "fp32", "cache": "hot", "device": "cpu: some, 2 threads", "commit": "abc", "versions": {"torch": "2"},
        "bytes": 1 << 30, "peak_extra_bytes": 1_000_000, "dense_codes_bytes": 4 * 4608,
    }  # fmt: skip
    return sizes | rest | fields


ROWS = [
    record(),
    record(competitor=bench_encode.SAELENS, ratio=1.5),
    record(N=512, ratio=0.5),
    record(N=512, competitor=bench_encode.SAELENS, ratio=9.0),
    record(N=512, ratio=0.1, dtype="bf16"),
    record(N=512, ratio=0.2, K=100),
    record("encode_screened", bench_encode.UNSCREENED, 0.3),
    record("steer_topk", report.GEMM_ALONE, 0.95, M=64),
]


def test_a_cell_holds_the_fastest_competitor_of_the_usual_sizes():
    (line,) = best.lines(ROWS)
    assert (line.op, line.D, line.F, line.what) == ("encode", 576, 4608, "TopK")
    assert line.cells == {
        1: best.Cell(1.5, bench_encode.SAELENS, 40.0),
        512: best.Cell(0.5, bench_encode.LINEAR_TOPK, 40.0),
    }


def test_the_table_marks_losses_and_counts_them():
    text = readme.section({"some-cpu": ROWS})
    assert "| `encode` | 576, 4.6k | TopK | 1.50 (40 %) |  |  |  | **0.50** (40 %) |" in text
    assert "8 comparisons, ours is slower in 4." in text
    assert "| `encode` | D = 576, F = 4.6k, N = 512 | 1.0 MB | 0.0 MB |" in text
    assert "encode: 1.2 times torch at N = 512, F = 4.6k: 0 of 3; worst 0.1 (goal 1.2)" in text


def test_goals_speak_of_their_own_rows_alone():
    lines = goals.reached([record(ratio=1.0), record("steer_topk", report.GEMM_ALONE, 0.95, M=64)])
    assert lines == [
        "encode: never slower than torch's linear and topk: 1 of 1; worst 1 (goal 1) at D=576 F=4608 N=1 K=64 topk "
        "fp32 hot",
        "encode: 80 % of the read bandwidth at N = 1, from memory: 0 of 1; worst 40 (goal 80) at D=576 F=4608 N=1 "
        "K=64 topk fp32 hot",
        "steer_topk: at most 1.1 times its encoder GEMM for M <= 64: 1 of 1; worst 0.95 (goal 0.909) at "
        "D=576 F=4608 N=1 M=64 K=64 topk fp32 hot",
    ]
    assert goals.reached([record(device="another: some")]) == []


def test_a_goal_may_be_an_upper_bound():
    fast, slow = (record("steer", competitors.GATHERED, M=64, device="cuda: some", ours_us_p50=t) for t in (4.0, 6.0))
    assert goals.reached([fast, slow])[0] == (
        "steer: 5 us at N <= 32, M <= 64, within a CUDA graph: 1 of 2; worst 6 (goal 5) at D=576 F=4608 N=1 M=64 K=64 "
        "topk fp32 hot"
    )


def test_every_goal_names_a_benchmark_and_a_competitor_of_it():
    for goal in goals.GOALS:
        assert goal.competitor in suite.BENCHES[goal.op].contenders


def test_a_section_is_replaced_between_its_marks():
    text = f"before {readme.BEGIN} old {readme.END} after"
    once = readme.with_section(text, "new")
    assert once == f"before {readme.BEGIN}\n\nnew\n\n{readme.END} after"
    assert readme.with_section(once, "new") == once
    with pytest.raises(ValueError, match="should hold"):
        readme.with_section("nothing", "new")


def test_the_readme_shows_what_the_committed_results_give():
    text = (readme.ROOT / "README.md").read_text()
    devices = readme.results()
    assert devices, "there are no results"
    assert readme.with_section(text, readme.section(devices)) == text, "run python -m sparsesteer.benchmarks.readme"
    assert all(readme.plot_of(name).is_file() for name in devices)


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    plot.draw(ROWS, tmp_path / "new" / "speed.png")
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.draw(ROWS[4:5], tmp_path / "none.png")


@pytest.fixture
def small_decode(monkeypatch):
    """The benchmark of ``decode`` on one small shape, for the moment."""
    bench = suite.BENCHES["decode"]
    cases = [case for case in bench.cases(True, "cpu") if (case.D, case.N) == (576, 1)]
    monkeypatch.setattr(harness, "SECONDS_QUICK", 0.0)
    monkeypatch.setitem(
        suite.BENCHES, "decode", harness.Bench("decode", lambda quick, device: cases, bench.races, bench.contenders)
    )


def test_the_command_measures_the_ops_it_is_given(small_decode, tmp_path):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "rows.json", tmp_path / "speed.png"
    options = ["bench", "--op", "decode", "--quick", "--json", str(file), "--plot", str(picture)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())
    assert rows and {row["op"] for row in rows} == {"decode"} and picture.is_file()
    assert re.search(r"decode against torch embedding_bag: D=576 F=4608", done.output)


def test_the_command_names_an_unknown_op_and_has_nothing_to_tune_on_a_cpu(monkeypatch):
    done = CliRunner().invoke(app, ["bench", "--op", "fold"])
    assert done.exit_code == 1 and "there is no benchmark of fold" in done.output
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = CliRunner().invoke(app, ["bench", "--tune"])
    assert done.exit_code == 0 and "nothing to tune" in done.output


def test_the_call_for_cuda_machines_is_a_sound_script():
    script = readme.ROOT / "benchmarks/gpu.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    wrong = subprocess.run(["bash", script, "--peer"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage: benchmarks/gpu.sh" in wrong.stderr
    modules = set(re.findall(r"sparsesteer\.benchmarks\.(bench_\w+)", script.read_text()))
    loop = re.search(r"for op in ([\w ]+); do", script.read_text())
    assert modules | {f"bench_{op}" for op in loop[1].split()} >= {
        path.stem for path in (readme.ROOT / "benchmarks").glob("bench_*.py")
    }
