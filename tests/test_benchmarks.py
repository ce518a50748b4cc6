"""The benchmarks' own arithmetic: statistics on clocks that are given, a gate that closes, rows that are complete."""

import json

import pytest
import torch

from sparsesteer.benchmarks import bench_decoding, bench_steer, competitors, gate, report, timing
from sparsesteer.benchmarks.bench_steer import Case
from sparsesteer.benchmarks.competitors import GATHERED, OURS

FIELDS = (
    "op backend competitor device D F N M K dtype ours_us_p20 ours_us_p50 ours_us_p80 theirs_us_p20 theirs_us_p50 "
    "theirs_us_p80 ratio ratio_low ratio_high percent_of_limit correct bytes flops cache versions commit"
).split()


@pytest.fixture
def few_rounds(monkeypatch):
    """Rows that cost little: the least number of rounds, and the machine's limits taken as given."""
    monkeypatch.setattr(timing, "FLUSH_BYTES", 1)
    monkeypatch.setattr(bench_steer, "WHOLE_SAE_ROUNDS", 2)
    monkeypatch.setattr(bench_steer, "COLD_BYTES", 1 << 20)
    monkeypatch.setattr(bench_steer, "SECONDS_QUICK", 0.0)
    monkeypatch.setattr(bench_steer.machine, "bandwidth", lambda device, n_bytes: 1e9)
    monkeypatch.setattr(bench_steer.machine, "matmul_rate", lambda device, dtype: 1e9)


def in_order(items, what):
    return items


def test_percentiles_of_known_times():
    assert timing.Spread.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == timing.Spread(2.0, 3.5, 5.0)


def test_ratios_are_paired_by_round():
    """A machine that slows down tenfold half-way does not change a ratio of 2, unlike a ratio of medians."""
    ours = [1.0, 1.0, 10.0, 10.0, 10.0]
    ratio = timing.Ratio.of([2 * t for t in ours], ours)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_the_interval_of_a_median_covers_it_at_the_stated_rate():
    generator = torch.Generator().manual_seed(3)
    covered = 0
    for _ in range(200):
        low, high = timing.median_interval(torch.randn(25, generator=generator), resamples=400)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 1.0


def test_interleaving_takes_turns_and_nobody_is_always_first():
    made = []
    calls = {name: [name] for name in "abc"}

    def clock(calls, turn):
        made.append(calls[0])
        return float(len(made))

    times = timing.interleave(calls, clock=clock, seconds=0, least_rounds=3, most_rounds=9)
    assert "".join(made) == "abc" + "abc" + "bca" + "cab"  # the first three are the untimed first calls
    assert times == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}


def test_rounds_go_on_until_the_time_is_up():
    clock_face = iter(range(100))
    times = timing.interleave(
        {"a": ["a"]}, clock=lambda calls, turn: 1.0, seconds=6, least_rounds=2, most_rounds=50,
        now=lambda: next(clock_face),
    )  # fmt: skip
    assert len(times["a"]) == 7  # two without a look at the clock, then while it shows 1 to 5


@pytest.mark.parametrize(("n_calls", "made"), [(1, [0] * 4), (3, [0, 1])], ids=["hot", "cold"])
def test_a_single_call_is_warmed_and_several_take_turns(n_calls, made):
    """Hot: each of two rounds calls once untimed, once timed. Cold: nothing is touched before it is timed."""
    seen = []
    calls = [lambda i=i: seen.append(i) for i in range(n_calls)]
    for turn in range(2):
        timing.wall_clock(calls, turn)
    assert seen == made


def wrong_by(error):
    """``steer`` with an edit that is off by a share ``error`` of itself."""
    return lambda plan: lambda h: h + (1 + error) * (competitors.gathered(plan)(h) - h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_gate_lets_right_results_pass_and_stops_wrong_ones(dtype):
    plan = competitors.Weights.random(48, 64, 0, "cpu", torch.float32).plans(8, 1)[0]
    h = torch.randn(20, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    gate.check({OURS: competitors.ours(plan), GATHERED: competitors.gathered(plan)}, plan, h, "case")
    for wrong in (lambda h: h, wrong_by(0.1)(plan), lambda h: torch.full_like(h, torch.nan), lambda h: h.double()):
        with pytest.raises(gate.WrongResult, match=f"case: {GATHERED}"):
            gate.check({OURS: competitors.ours(plan), GATHERED: wrong}, plan, h, "case")


def test_ours_is_held_to_a_narrower_limit_than_whole_reconstructions():
    plan = competitors.Weights.random(48, 64, 0, "cpu", torch.float32).plans(8, 1)[0]
    h = torch.randn(20, 48, generator=torch.Generator().manual_seed(0))
    slightly = wrong_by(1e-4)(plan)
    gate.check({GATHERED: slightly}, plan, h, "case")
    with pytest.raises(gate.WrongResult, match=OURS):
        gate.check({OURS: slightly}, plan, h, "case")


def test_all_competitors_compute_the_same():
    weights = competitors.Weights.random(48, 64, 0, "cpu", torch.float32)
    plan = weights.plans(8, 1)[0]
    ways = {
        OURS: competitors.ours(plan),
        GATHERED: competitors.gathered(plan),
        competitors.ENCODE_ALL: competitors.encode_all(weights, 8),
        competitors.SAELENS_ARITHMETIC: competitors.saelens_arithmetic(weights, 8),
    }
    if not competitors.left_out(competitors.SAELENS_CLASS, "cpu"):
        ways[competitors.SAELENS_CLASS] = competitors.saelens_class(weights, 8)
    h = torch.randn(20, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gate.check(ways, plan, h, "case")


def test_cold_plans_have_rows_of_their_own_and_exceed_the_bytes_asked_for():
    weights = competitors.Weights.random(48, 64, 1 << 16, "cpu", torch.float32)
    plans = weights.plans(8, 1000)
    assert weights.n_bytes >= 1 << 16
    assert len({plan.encoder.data_ptr() for plan in plans}) == len(plans) == len(weights.encoder) // 8


@pytest.mark.parametrize("dtype", bench_steer.DTYPES)
def test_rows_are_complete(few_rounds, dtype, tmp_path, capsys):
    rows, notes = bench_steer.measure([Case(48, 128, 4, 64, dtype)], "cpu", True, in_order)
    report.write_json([row.as_json() for row in rows], tmp_path / "new" / "rows.json")
    written = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "rows.json"]
    assert [(row["competitor"], row["cache"]) for row in written][:2] == [(GATHERED, "hot"), (GATHERED, "cold")]
    whole = {competitors.ENCODE_ALL, competitors.SAELENS_ARITHMETIC}
    assert whole & {row["competitor"] for row in written} == (whole if dtype == "fp32" else set())
    for row in written:
        assert not set(FIELDS) - set(row)
        assert row["op"] == "steer" and row["correct"] is True and row["K"] is None
        assert (row["D"], row["F"], row["N"], row["M"], row["dtype"]) == (48, 128, 4, 64, dtype)
        size = 4 if dtype == "fp32" else 2
        assert row["bytes"] == 64 * (2 * 48 * 4 + 10 * 4) + 2 * 4 * 48 * size
        assert row["ours_us_p20"] <= row["ours_us_p50"] <= row["ours_us_p80"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert any("compiled" in note for note in notes)


def test_a_wrong_result_ends_the_run_without_any_speed(few_rounds, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(competitors, "ours", wrong_by(0.5))
    arguments = [
        "bench_steer",
        "--quick",
        "--device",
        "cpu",
        "--shape",
        "48,128",
        "--json",
        str(tmp_path / "rows.json"),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    assert bench_steer.main() == 1
    printed = capsys.readouterr()
    assert printed.out == "" and f"{OURS} is wrong" in printed.err
    assert not list(tmp_path.iterdir())


def test_an_sae_larger_than_memory_is_left_out_by_name(few_rounds, monkeypatch):
    monkeypatch.setattr(bench_steer, "_free_bytes", lambda device: 1000)
    rows, notes = bench_steer.measure([Case(48, 128, 4, 1, "fp32")], "cpu", True, in_order)
    assert rows == [] and "D=48 F=128 is left out" in notes[0]


def example_row(ratio):
    spread = timing.Spread(1.0, 2.0, 3.0)
    return report.Row(
        op="steer", backend="native", competitor=GATHERED, device="cpu", D=48, F=128, N=4, M=8, K=None, dtype="fp32",
        row_dtype="fp32", cache="hot", ours=spread, theirs=spread, ratio=timing.Ratio(ratio, ratio, ratio), rounds=2,
        bytes=1, flops=1, limit_us=1.0, correct=True,
    )  # fmt: skip


@pytest.mark.parametrize("rich", [True, False])
def test_a_losing_cell_is_marked(rich, monkeypatch, capsys):
    if not rich:
        monkeypatch.setattr(report.util, "find_spec", lambda name: None)
    report.print_rows([example_row(0.9)])
    printed = capsys.readouterr().out
    assert "0.90x!" in printed and "ours is slower in 1" in printed
    report.print_rows([example_row(1.1)])
    printed = capsys.readouterr().out
    assert "1.10x" in printed and "x!" not in printed


def test_half_of_the_limit_is_fifty_percent():
    assert example_row(1.0).percent_of_limit == 50.0


def test_decoding_compares_steered_with_unsteered(one_thread, monkeypatch):
    pytest.importorskip("transformers")
    result = bench_decoding.measure_tiny("cpu", pairs=2)
    assert result.pairs == 2 and result.ratio.low <= result.ratio.median <= result.ratio.high
    assert json.dumps(result.as_json())
    plain = competitors.gathered
    monkeypatch.setattr(competitors, "gathered", lambda plan: lambda h: plain(plan)(h).flip(-1))
    with pytest.raises(gate.WrongResult, match="no speed"):
        bench_decoding.measure_tiny("cpu", pairs=2)
