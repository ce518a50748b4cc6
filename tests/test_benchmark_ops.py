"""The benchmark of every op, on shapes that take no time: rows are complete, and a gate stands before them."""

import ast
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsesteer import ops
from sparsesteer._schemas import SCHEMAS
from sparsesteer.benchmarks import (
    bench_steer,
    bench_steer_slots,
    bench_steer_topk,
    case,
    competitors,
    gate,
    harness,
    machine,
    report,
    suite,
    timing,
    tune,
)
from sparsesteer.kernels import tunings
from sparsesteer.kernels.tiling import steer_tiling

FIELDS = (
    "op backend competitor device D F N M K S dtype row_dtype activation ours_us_p20 ours_us_p50 ours_us_p80 "
    "theirs_us_p20 theirs_us_p50 theirs_us_p80 ratio ratio_low ratio_high percent_of_limit correct bytes flops cache "
    "peak_extra_bytes dense_codes_bytes versions commit"
).split()
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CASES = {
    "steer": {"M": 64},
    "encode": {"K": 8},
    "encode_screened": {"K": 8},
    "decode": {"K": 8},
    "steer_topk": {"M": 4, "K": 8, "activation": "topk"},
    "steer_reconstruct": {"M": 4, "K": 8},
    "steer_slots": {"M": 5, "S": 3},
    "activations": {"M": 64},
    "activations_topk": {"M": 40, "K": 8, "activation": "topk"},
}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch, one_thread):
    """The least number of rounds, and the machine's limits taken as given."""
    monkeypatch.setattr(timing, "FLUSH_BYTES", 1)
    monkeypatch.setattr(timing, "MOST_ROUNDS", 2)
    monkeypatch.setattr(harness, "SECONDS_QUICK", 0.0)
    monkeypatch.setattr(harness, "COLD_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "bandwidth", lambda device, n_bytes: 1e9)
    monkeypatch.setattr(machine, "matmul_rate", lambda device, dtype: 1e9)
    few = timing.interleave
    monkeypatch.setattr(timing, "interleave", lambda calls, **options: few(calls, **options | {"least_rounds": 2}))


def small(op, **sizes):
    """A case that takes microseconds."""
    return case.Case(op, 48, 256, 7, **CASES[op] | sizes)


def measure(*cases):
    """(rows, notes)."""
    run = harness.Run("cpu", quick=True)
    rows = [row for case in cases for row in harness.measure(suite.BENCHES[case.op], [case], run, in_order)]
    return rows, list(run.notes)


def in_order(items, what):
    return items


def activations_of(op):
    return sorted({case.activation for case in suite.BENCHES[op].cases(True, "cpu")})


def test_every_op_has_a_benchmark():
    assert {op.removesuffix("_out") for op in SCHEMAS} == set(suite.BENCHES)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [*((op, "fp32") for op in CASES), ("steer", "bf16"), ("activations", "bf16"), ("steer_slots", "bf16")],
)
def test_rows_are_complete(op, dtype, tmp_path):
    cases = [small(op, dtype=dtype, activation=activation) for activation in activations_of(op)]
    rows, notes = measure(*cases)
    report.write_json([row.as_json() for row in rows], tmp_path / "new" / "rows.json")
    written = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "rows.json"]
    told = " ".join(notes)
    for case_ in cases:
        found = {row.competitor for row in rows if row.case == case_}
        assert found and found <= set(suite.BENCHES[op].contenders)
    for name in suite.BENCHES[op].contenders:
        whole_in_bf16 = op == "steer" and dtype == "bf16" and name not in (competitors.GATHERED, competitors.COMPILED)
        assert any(row.competitor == name for row in rows) or f"{name} is left out" in told or whole_in_bf16
    for row in written:
        assert not set(FIELDS) - set(row)
        assert row["op"] == op and row["correct"] is True and row["dtype"] == dtype
        assert (row["D"], row["F"], row["N"]) == (48, 256, 7)
        assert [row[letter] for letter in "MKS"] == [CASES[op].get(letter) for letter in "MKS"]
        assert row["bytes"] == cases[0].n_bytes and row["dense_codes_bytes"] == 4 * 7 * 256
        assert row["ours_us_p20"] <= row["ours_us_p50"] <= row["ours_us_p80"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


@pytest.mark.parametrize(
    ("case", "n_bytes", "flops"),
    [
        (small("steer"), 64 * (2 * 48 + 10) * 4 + 2 * 7 * 48 * 4, 4 * 7 * 64 * 48),
        (small("steer", dtype="bf16"), 64 * (2 * 48 + 10) * 4 + 2 * 7 * 48 * 2, 4 * 7 * 64 * 48),
        (small("encode"), 256 * 48 * 4 + 7 * 48 * 4 + 7 * 8 * 8, 2 * 7 * 256 * 48),
        (small("encode", row_dtype="bf16"), 256 * 48 * 2 + 7 * 48 * 4 + 7 * 8 * 8, 2 * 7 * 256 * 48),
        (small("encode_screened"), 256 * (48 + 4 + 4) + 7 * 48 * 4 + 7 * 8 * 8, 2 * 7 * 256 * 48),
        (small("decode"), 56 * 48 * 4 + 7 * 8 * 8 + 7 * 48 * 4, 2 * 7 * 8 * 48),
        (small("steer_topk"), 260 * 48 * 4 + 4 * 48 * 4 + 4 * 40 + 2 * 7 * 48 * 4, 2 * 7 * 260 * 48),
        (small("steer_reconstruct"), (256 + 56) * 48 * 4 + 2 * 7 * 48 * 4, 2 * 7 * 264 * 48),
        (small("activations"), 64 * (48 + 10) * 4 + 7 * 48 * 4 + 7 * 64 * 4, 2 * 7 * 64 * 48),
        (small("activations_topk"), 256 * 48 * 4 + 40 * 40 + 7 * 48 * 4 + 7 * 40 * 4, 2 * 7 * 256 * 48),
        (small("steer_slots"), 3 * 5 * (2 * 48 + 10) * 4 + 2 * 7 * 48 * 4 + 7 * 4, 4 * 7 * 5 * 48),
    ],
    ids=str,
)
def test_costs_by_hand(case, n_bytes, flops):
    assert (case.n_bytes, case.flops) == (n_bytes, flops)


@pytest.mark.parametrize("op", ["steer", "steer_topk", "steer_reconstruct", "steer_slots"])
def test_steering_that_does_nothing_gets_no_speed(op, monkeypatch):
    right = ops.steer
    monkeypatch.setattr(ops, "steer_slots", lambda h, bank, slot: h.clone())
    # the gate itself asks for the reference
    monkeypatch.setattr(ops, "steer", lambda h, plan, **named: right(h, plan, **named) if named else h.clone())
    with pytest.raises(gate.WrongResult, match=f"{gate.OURS} is wrong"):
        measure(small(op))


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
@pytest.mark.parametrize("wrong", ["value", "index", "missing"])
def test_wrong_codes_get_no_speed(activation, wrong, monkeypatch):
    right = ops.encode

    def encode(*arguments):
        codes = right(*arguments)
        values, indices = codes.values.clone(), codes.indices.clone()
        if wrong == "value":
            values[3, 0] *= 1.001
        elif wrong == "index":
            indices[3, 0] = (indices[3, 0] + 1) % 256
        else:
            indices[3, 0], values[3, 0] = -1, 0
        return codes._replace(values=values, indices=indices)

    monkeypatch.setattr(ops, "encode", encode)
    with pytest.raises(gate.WrongResult, match=f"{gate.OURS} is wrong"):
        measure(small("encode", activation=activation))


def test_a_wrong_decoder_gets_no_speed(monkeypatch):
    right = ops.decode
    monkeypatch.setattr(ops, "decode", lambda codes, sae: right(codes, sae) * 1.0001)
    with pytest.raises(gate.WrongResult, match=f"{gate.OURS} is wrong"):
        measure(small("decode"))


@pytest.mark.parametrize("op", ["activations", "activations_topk"])
def test_wrong_activations_get_no_speed(op, monkeypatch):
    right = ops.activations

    def activations(h, plan, **named):
        return right(h, plan, **named) * (1.0 if named else 1.001)  # the gate itself asks for the reference

    monkeypatch.setattr(ops, "activations", activations)
    with pytest.raises(gate.WrongResult, match=f"{gate.OURS} is wrong"):
        measure(small(op))


def test_a_wrong_competitor_ends_the_run(monkeypatch):
    monkeypatch.setattr(bench_steer_topk, "masked_edit", lambda weights, m, k: lambda h: h)
    with pytest.raises(gate.WrongResult, match=re.escape(f"{bench_steer_topk.MASKED} is wrong")):
        measure(small("steer_topk"))


def test_tokens_that_need_every_feature_need_it():
    weights = harness.Run("cpu", True).weights(small("steer_topk"), 0)
    h = bench_steer_topk.all_live(torch.randn(50, 48), weights)
    assert bool((h @ weights.encoder[0] + weights.bias[0] > 0).all())


@pytest.mark.parametrize(("n", "want"), [(4, [0, 1, 0, 1]), (100, [0] * 50 + [1] * 50)])
def test_requests_take_turns_and_prompts_lie_together(n, want):
    some = replace(small("steer_slots"), N=n, S=2)
    assert bench_steer_slots.slots_of(some, "cpu").tolist() == want


def test_a_wrong_result_leaves_no_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(competitors, "ours", lambda plan: lambda h: h.clone())
    monkeypatch.setattr(bench_steer, "QUICK_SHAPES", ((48, 128),))
    monkeypatch.setattr(sys, "argv", ["bench_steer", "--quick", "--device", "cpu", "--json", str(tmp_path / "rows")])
    assert harness.main(bench_steer.BENCH) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and f"{gate.OURS} is wrong" in printed.err
    assert not list(tmp_path.iterdir())


def test_an_sae_larger_than_memory_is_left_out_by_name(monkeypatch):
    monkeypatch.setattr(harness, "_free_bytes", lambda device: 1000)
    rows, notes = measure(small("steer"))
    assert rows == [] and "D=48 F=256 is left out" in notes[0]


def test_shapes_and_tokens_can_be_chosen():
    cases = suite.BENCHES["encode"].cases(False, "cpu")
    chosen = harness.only(cases, [(576, 4608)], [1, 8])
    assert chosen and {(c.D, c.F) for c in chosen} == {(576, 4608)} and {c.N for c in chosen} == {1, 8}
    assert harness.only(cases, [], []) == cases


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("bench_*.py")), ids=lambda path: path.stem)
def test_pytest_benchmark_finds_a_function_for_each_benchmark(path):
    if path.stem == "bench_decoding":
        return  # a model, no op
    names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {f"test_{op}" for op in suite.BENCHES if op.startswith(path.stem.removeprefix("bench_"))} & names


def test_candidates_of_a_tiling_are_legal_and_measured_tables_replace_the_rule(monkeypatch):
    base = steer_tiling(128, 64, 576, 576)
    candidates = list(tune._candidates(base, {}))
    assert {name for overrides in candidates for name in overrides} == set(tune.FIELDS)
    assert all(overrides.get("shrink_rows", 16) >= 16 for overrides in candidates)
    monkeypatch.setattr(tunings, "entries", lambda op, device: {tunings.shape_class(128, 64, 576, 576): {"warps": 1}})
    gpu = torch.device("cuda", 0)
    assert tunings.tuned("steer", base, (100, 33, 1000, 513), gpu) == base._replace(warps=1)
    assert tunings.tuned("steer", base, (100, 33, 1000, 512), gpu) == base
    assert tunings.file_of("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_cpu_tensors_have_no_table():
    assert tunings.entries("steer", torch.device("cpu")) == {}
