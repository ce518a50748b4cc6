"""examples/spare_llama3.py: the authors' settings, and the whole course of it on tiny models of their families."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conflict_models import answer_of, gemma, model, sae, tokenizer

import sparsesteer as ss
from sparsesteer.methods.spare import Conflict, exact_match, with_demonstrations

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "spare_llama3.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("spare_llama3", EXAMPLE)
    module = sys.modules["spare_llama3"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["spare_llama3"]


@pytest.mark.parametrize(
    ("name", "toward", "layers", "share", "alpha", "seeds"),
    [
        ("llama3", "memory", (13, 14, 15, 16), 0.07, 2.0, (42, 43, 44, 45, 46)),
        ("llama2", "context", (12, 13, 14, 15), 0.07, 2.0, (42, 43, 44, 46)),
        ("gemma2", "context", (23, 24, 25, 26), 0.01, 3.0, (42, 43, 44, 45, 46)),
        ("gemma2", "memory", (23, 24, 25, 29, 30, 31), 0.01, 1.8, (42, 43, 44, 45, 46)),
    ],
)
def test_settings_are_the_authors(example, name, toward, layers, share, alpha, seeds):
    setting = example.SETTINGS[name]
    assert (setting.layers[toward], setting.share, setting.alpha[toward], setting.seeds) == (
        layers,
        share,
        alpha,
        seeds,
    )


def small(setting, example, monkeypatch):
    """The setting at blocks of a tiny model, with fewer seeds and demonstrations."""
    monkeypatch.setattr(example, "SHOTS_TO_FIT", (1, 2))
    monkeypatch.setattr(example, "SHOTS_TO_ANSWER", 1)
    monkeypatch.setattr(example, "NEW_TOKENS", 2)
    layers = {toward: tuple(range(min(2, len(some)) + (toward == "memory"))) for toward, some in setting.layers.items()}
    return replace(setting, layers=layers, seeds=setting.seeds[:2])


def answered_both_ways(the_model, example, setting):
    """Examples of which the model gives answers of both sides: what it says is listed behind what is shown."""
    the_tokenizer = tokenizer()
    bare = [
        {"question": f"who is {i}", "sub_context": f"it was {i}", "org_context": f"it is {i}",
         "sub_answer": [f"s{i}"], "org_answer": [f"o{i}"]}
        for i in range(7)
    ]  # fmt: skip
    pool, _ = example.held_out([Conflict.of(each, i) for i, each in enumerate(bare)], 5)
    said = {each.question: [] for each in pool}
    for shots in example.SHOTS_TO_FIT:
        for seed in setting.seeds:
            for each in with_demonstrations(pool, shots, ("ss", "so", "oo"), seed):
                said[each.question].append(answer_of(the_model, the_tokenizer, each.prompt, example.NEW_TOKENS))
    for number, each in enumerate(bare):
        for place, answer in enumerate(sorted({a for a in said.get(each["question"], []) if a.strip(" .:")})):
            side, other = ("sub_answer", "org_answer") if (place + number) % 2 else ("org_answer", "sub_answer")
            if not exact_match(answer, each[other]):
                each[side].append(answer)
    return bare


@pytest.mark.parametrize(("name", "make"), [("llama3", model), ("gemma2", gemma)])
def test_it_runs_on_tiny_models_and_goes_on_where_it_was(example, name, make, tmp_path, monkeypatch):
    the_model = make()
    setting = small(example.SETTINGS[name], example, monkeypatch)
    examples = answered_both_ways(the_model, example, setting)
    kind = ss.TopK(5) if name.startswith("llama") else ss.JumpReLU(0.3)
    saes = {layer: sae(layer, kind) for layer in setting.all_layers}
    given = setting, the_model, tokenizer(), saes, examples, tmp_path
    results = example.run(*given, n_held_out=5)
    assert set(results) == {"none", "SPARE"} and set(results["SPARE"]) == {"context", "memory"}
    assert json.loads((tmp_path / "results.json").read_text()) == results
    loaded = ss.SPARE.load(tmp_path / "spare.safetensors", saes)
    assert loaded.about["means"] == "confidence" and loaded.selection.share == setting.share

    def refuse(*given, **options):
        raise AssertionError("the model answers again")

    monkeypatch.setattr(the_model, "generate", refuse)
    assert example.run(*given, n_held_out=5) == results


def test_the_model_is_steered_at_the_layers_of_each_direction(example):
    setting = example.SETTINGS["gemma2"]
    ones = torch.ones(96)
    given = {layer: ones for layer in setting.all_layers}
    saes = {layer: sae(layer) for layer in setting.all_layers}
    spare = ss.SPARE.from_statistics(saes, given, given, given, {layer: ones for layer in saes}, k=3)
    for toward, layers in setting.layers.items():
        assert tuple(example.at_layers(spare, layers).plan(toward)) == layers
