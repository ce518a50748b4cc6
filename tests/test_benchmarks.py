"""The benchmarks' own arithmetic: statistics on clocks that are given, a gate that closes, tables that mark losses."""

import json

import pytest
import torch

from sparsesteer.benchmarks import bench_decoding, competitors, gate, memory, report, timing
from sparsesteer.benchmarks.case import Case
from sparsesteer.benchmarks.competitors import GATHERED
from sparsesteer.benchmarks.gate import OURS
from sparsesteer.benchmarks.weights import Weights


def test_percentiles_of_known_times():
    assert timing.Spread.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == timing.Spread(2.0, 3.5, 5.0)


def test_ratios_are_paired_by_round():
    """A machine that slows down tenfold half-way does not change a ratio of 2, unlike a ratio of medians."""
    ours = [1.0, 1.0, 10.0, 10.0, 10.0]
    ratio = timing.Ratio.of([2 * t for t in ours], ours)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_a_ratio_of_sums_weighs_its_pairs():
    """A long step counts as much as many short ones."""
    ratio = timing.Ratio.of_sums([1.0] * 10 + [30.0], [1.0] * 10 + [10.0])
    assert ratio.median == 2.0 and 1.0 <= ratio.low < 2.0 < ratio.high <= 3.0
    even = timing.Ratio.of_sums([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (even.median, even.low, even.high) == (2.0, 2.0, 2.0)


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


@pytest.fixture
def plan():
    return Weights.random(48, 64, 0, "cpu", torch.float32).plans(8, 1)[0]


@pytest.fixture
def h():
    return torch.randn(20, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_gate_lets_right_results_pass_and_stops_wrong_ones(dtype, plan, h):
    h = h.to(dtype)
    truth = gate.edited_rows(plan, h, "case")
    truth.check(OURS, competitors.ours(plan)(h))
    truth.check(GATHERED, competitors.gathered(plan)(h))
    for wrong in (lambda h: h, wrong_by(0.1)(plan), lambda h: torch.full_like(h, torch.nan), lambda h: h.double()):
        with pytest.raises(gate.WrongResult, match=f"case: {GATHERED}"):
            truth.check(GATHERED, wrong(h))


def test_ours_is_held_to_a_narrower_limit_than_whole_reconstructions(plan, h):
    slightly = wrong_by(1e-4)(plan)(h)
    truth = gate.edited_rows(plan, h, "case")
    truth.check(GATHERED, slightly)
    with pytest.raises(gate.WrongResult, match=OURS):
        truth.check(OURS, slightly)


def test_cold_plans_have_rows_of_their_own_and_exceed_the_bytes_asked_for():
    weights = Weights.random(48, 64, 1 << 16, "cpu", torch.float32)
    plans = weights.plans(8, 1000)
    assert weights.n_bytes >= 1 << 16
    assert len({plan.encoder.data_ptr() for plan in plans}) == len(plans) == len(weights.encoder) // 8


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_random_saes_have_as_many_active_features_as_asked_for(activation):
    weights = Weights.random(64, 512, 0, "cpu", torch.float32)
    h = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    active = (weights.sae(activation, 16).encode(h) != 0).sum(-1).double()
    assert active.mean() == pytest.approx(16, rel=0 if activation == "topk" else 0.2)
    assert active.min() == 16 or activation == "jumprelu"


def test_memory_counts_what_a_call_needs_beside_its_result():
    def call(n_scratch):
        scratch = torch.ones(n_scratch)
        return scratch[: 1 << 20] + 1

    torch.ones(32 << 20)  # freed memory that a process keeps must not hide anything
    for n_scratch in (1 << 20, 16 << 20):
        result, extra = memory.peak_extra(lambda n=n_scratch: call(n), "cpu")
        if extra is None:
            pytest.skip("this system cannot reset its peak")
        assert len(result) == 1 << 20
        assert extra == pytest.approx(4 * n_scratch, abs=1 << 20)


def example_row(ratio, **fields):
    spread = timing.Spread(1.0, 2.0, 3.0)
    defaults = {
        "case": Case("steer", 48, 128, 4, M=8), "backend": "native", "competitor": GATHERED, "device": "cpu",
        "cache": "hot", "ours": spread, "theirs": spread, "ratio": timing.Ratio(ratio, ratio, ratio), "rounds": 2,
        "limit_us": 1.0, "peak_extra_bytes": 0, "correct": True,
    }  # fmt: skip
    return report.Row(**defaults | fields)


@pytest.mark.parametrize("rich", [True, False])
def test_a_losing_cell_is_marked(rich, monkeypatch, capsys):
    if not rich:
        monkeypatch.setattr(report.util, "find_spec", lambda name: None)
    report.print_rows([example_row(0.9)])
    printed = capsys.readouterr().out
    assert "0.90x 50%!" in printed and "ours is slower in 1" in printed
    report.print_rows([example_row(1.1)])
    printed = capsys.readouterr().out
    assert "1.10x" in printed and "%!" not in printed


def test_a_part_of_ours_may_be_a_tenth_faster():
    assert not example_row(0.95, competitor=report.GEMM_ALONE).loses
    assert example_row(0.9, competitor=report.GEMM_ALONE).loses


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
