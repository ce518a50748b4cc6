"""The commands on a tiny model: what they print, their JSON, their exit codes and one-line errors."""

import json

import pytest
import torch
from tiny_model import N_FEATURES, write_model, write_sae
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sparsesteer import SAE, Explanations
from sparsesteer.cli import app, models, steer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(model folder, SAE folder)"""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    write_sae(folder / "sae")
    return str(folder / "model"), str(folder / "sae")


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == exit_code, result.output + repr(result.exception)
    return result


def run_json(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def error_of(*arguments):
    stderr = run(*arguments, exit_code=1).stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in stderr
    return lines[0]


def test_info():
    facts = run_json("info")
    assert facts["torch"] == torch.__version__
    assert facts["backends"]["reference"] == "available"
    assert torch.__version__ in run("info").stdout


def test_features_are_those_of_the_sae(tiny):
    model_folder, sae_folder = tiny
    got = run_json("features", "seven ships wait", "-m", model_folder, "-s", sae_folder, "--top", 4, "--raw")
    tokenizer, sae = AutoTokenizer.from_pretrained(model_folder), SAE.load_from_disk(sae_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    ids = tokenizer("seven ships wait", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        codes = sae.encode(model(ids, output_hidden_states=True).hidden_states[2][0, 1:])
    order = (codes.amax(0) / sae.feature_maximum).argsort(descending=True)[:4]
    assert [column["feature"] for column in got["features"]] == order.tolist()
    assert [token.strip() for token in got["tokens"]] == ["ships", "wait"]
    for column in got["features"]:
        torch.testing.assert_close(torch.tensor(column["activations"]), codes[:, column["feature"]])
        assert column["maximum"] == pytest.approx(sae.feature_maximum[column["feature"]].item())
        assert len(column["promotes"]) == 6


def test_features_leaves_special_tokens_out_of_a_chat(tiny):
    got = run_json("features", "seven ships", "-m", tiny[0], "-s", tiny[1])
    assert [token.strip() for token in got["tokens"]] == ["seven", "ships"]


def test_a_text_of_one_token_is_refused(tiny):
    assert "give a longer one" in error_of("features", "seven", "-m", tiny[0], "-s", tiny[1], "--raw")


@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated"])
def test_the_first_token_is_never_steered(tiny, monkeypatch, positions):
    """Hidden states after the steered block, beside those of an unsteered model that reads the same tokens."""
    caught = []

    def generate_and_catch(model, tokenizer, input_ids, **options):
        handle = model.model.layers[1].register_forward_hook(lambda module, args, out: caught.append(out.clone()))
        with torch.no_grad():
            model(input_ids)
        handle.remove()
        return [[3]]

    monkeypatch.setattr(steer, "generate", generate_and_catch)
    run("steer", "seven ships wait", "--raw", "-m", tiny[0], "-s", tiny[1], "-e", "add:3=4", "--positions", positions)
    changed = (caught[1] != caught[0]).any(-1)[0].tolist()
    expected = {"all": [False, True, True], "prompt": [False, True, True], "last_prompt": [False, False, True]}
    assert changed == expected.get(positions, [False, False, False])


def test_features_prints_a_table(tiny):
    printed = run("features", "seven ships", "-m", tiny[0], "-s", tiny[1], "--top", 3).stdout
    assert "ships" in printed and "%" in printed and "promotes" in printed


def test_features_at_another_layer_differ(tiny):
    at = {layer: run_json("features", "seven ships", "-m", tiny[0], "-s", tiny[1], "-l", layer) for layer in (0, 1)}
    assert at[0]["features"] != at[1]["features"]
    assert at[1]["features"] == run_json("features", "seven ships", "-m", tiny[0], "-s", tiny[1])["features"]


def test_features_without_statistics_take_the_maximum_of_the_text(tiny, tmp_path):
    write_sae(tmp_path / "bare", statistics=False)
    for column in run_json("features", "seven ships wait", "-m", tiny[0], "-s", tmp_path / "bare")["features"]:
        assert column["maximum"] == max(column["activations"])


STEER = ("steer", "seven ships", "--max-new-tokens", 12)


def test_steer_changes_the_text_and_strength_0_does_not(tiny):
    options = ("-m", tiny[0], "-s", tiny[1], "-e", "set:3=40", "-e", "add:5=30")
    steered = run_json(*STEER, *options)
    assert steered["steered"] != steered["unsteered"]
    off = run_json(*STEER, *options, "--strength", 0)
    assert off["steered"] == off["unsteered"] == steered["unsteered"]
    assert steered["edits"] == ["set:3=40", "add:5=30"]


def test_steer_prints_both_texts(tiny):
    result = run_json(*STEER, "-m", tiny[0], "-s", tiny[1], "-e", "set:3=40")
    printed = run(*STEER, "-m", tiny[0], "-s", tiny[1], "-e", "set:3=40").stdout
    assert "unsteered" in printed and "steered by set:3=40" in printed
    assert result["steered"].split()[0] in printed


def test_sampling_follows_the_seed(tiny):
    options = ("-m", tiny[0], "-s", tiny[1], "-e", "set:3=1", "--temperature", 2)
    texts = [run_json(*STEER, *options, "--seed", seed)["unsteered"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_sampled_texts_share_their_seed(tiny):
    options = ("-m", tiny[0], "-s", tiny[1], "-e", "set:3=1", "--temperature", 2, "--strength", 0)
    result = run_json(*STEER, *options)
    assert result["steered"] == result["unsteered"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-e", "set:3"], "'3' should be feature=value"),
        (["-e", f"set:{N_FEATURES}=1"], "out of range"),
        (["-e", "set:3=1", "--layer", "9"], "block 9"),
        (["-e", "set:3=1", "--positions", "some"], "'some'"),
        (["-e", "set:3=1", "--strength", "nan"], "finite"),
    ],
)
def test_steer_reports_user_errors_in_one_line(tiny, options, message):
    assert message in error_of(*STEER, "-m", tiny[0], "-s", tiny[1], *options)


def test_bad_models_and_saes(tiny, tmp_path):
    edit = ("-e", "set:3=1")
    assert "no such folder" in error_of(*STEER, *edit, "-m", tiny[0], "-s", tmp_path / "nowhere")
    assert "is not a known SAE: the folder holds nothing" in error_of(*STEER, *edit, "-m", tiny[0], "-s", tmp_path)
    assert "no such folder" in error_of(*STEER, *edit, "-m", tmp_path / "nowhere", "-s", tiny[1])
    assert "no such file" in error_of(*STEER, *edit, "-m", tmp_path / "nothing.gguf", "-s", tiny[1])
    assert "--sae" in error_of(*STEER, *edit, "-m", tiny[0])
    error_of(*STEER, *edit, "-m", tmp_path, "-s", tiny[1])


def test_a_missing_package_is_named_with_the_pip_command(tiny, monkeypatch):
    monkeypatch.setattr(models.util, "find_spec", lambda name: None)
    assert "pip install" in error_of(*STEER, "-e", "set:3=1", "-s", tiny[1])


def test_debug_lets_the_error_through(tiny):
    result = CliRunner().invoke(app, [*map(str, STEER), "-e", "set:3", "-m", tiny[0], "-s", tiny[1], "--debug"])
    assert isinstance(result.exception, ValueError) and result.exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["steer"],
        ["steer", "hello"],
        ["steer", "hello", "-e", "set:1=1", "--spec", "s.yaml"],
        ["features"],
        ["features", "hello", "--search", "hello"],
        ["info", "--no-such"],
        ["fly"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    run(*arguments, exit_code=2)


@pytest.fixture(scope="module")
def explained(tiny, tmp_path_factory):
    """An SAE folder whose feature 3 is explained by "ship" and "sea", and 4 by "ship"."""
    folder = tmp_path_factory.mktemp("explained")
    write_sae(folder)
    lists = [[("ship", 2.0), ("sea", 1.0)] if f == 3 else [("ship", 3.0)] if f == 4 else [] for f in range(N_FEATURES)]
    Explanations.of(lists, method="by hand", method_version="1").save(folder / "explanations.safetensors")
    return str(folder)


def test_features_by_their_words(tiny, explained):
    found = run_json("features", "--search", "ship", "-s", explained, "-m", "no such model")
    assert [f["feature"] for f in found["features"]] == [4, 3] and found["method"] == "by hand" and found["found"] == 2
    assert [f["feature"] for f in run_json("features", "--search", "Ship SEA", "-s", explained)["features"]] == [3]
    assert len(run_json("features", "--search", "ship", "-s", explained, "--top", 1)["features"]) == 1
    printed = run("features", "--search", "ship", "-s", explained).stdout
    assert "2 features" in printed and "sea" in printed
    assert "has no explanations" in error_of("features", "--search", "ship", "-s", tiny[1])


def test_steer_by_words_and_by_maxima(tiny, explained):
    maximum = SAE.load_from_disk(explained).feature_maximum[3].item()
    result = run(*STEER, "-m", tiny[0], "-s", explained, "-e", "set:sea=10x-max", "--json")
    assert f"sea: feature 3, set {10 * maximum:g}  ship  sea" in result.stderr
    by_number = run_json(*STEER, "-m", tiny[0], "-s", explained, "-e", f"set:3={10 * maximum}")
    assert json.loads(result.stdout)["steered"] == by_number["steered"] != by_number["unsteered"]
    assert "2 features" in error_of(*STEER, "-m", tiny[0], "-s", explained, "-e", "set:ship=1")


SPEC = "version: 1\nsae: {path: %s}\nmodel: %s\nstrength: 0.5\npositions: generated\nedits:\n- set: {sea: 10x max}\n"


def test_steer_by_a_spec(tiny, explained, tmp_path):
    spec = tmp_path / "sea.yaml"
    spec.write_text(SPEC % (explained, tiny[0]))
    by_hand = ("-m", tiny[0], "-s", explained, "-e", "set:sea=10x-max")
    for options, same in (
        ((), ("--strength", 0.5, "--positions", "generated")),
        (("--strength", 2, "--positions", "all", "--layer", 0), ("--strength", 2, "--layer", 0)),
    ):
        result = run_json(*STEER, "--spec", spec, *options)
        assert result["steered"] == run_json(*STEER, *by_hand, *same)["steered"] != result["unsteered"]
    assert result["edits"] == [{"set": {"sea": "10x max"}}] and result["sae"] == {"path": explained}
    assert "steered by" in run(*STEER, "--spec", spec).stdout
    assert "edits[0]" in error_of(*STEER, "--spec", write_spec(tmp_path, "version: 1\nedits: [{put: {}}]"))
    assert "No such file" in error_of(*STEER, "--spec", tmp_path / "nothing.yaml")


def write_spec(folder, text):
    (folder / "spec.yaml").write_text(text)
    return folder / "spec.yaml"


@pytest.mark.parametrize("command", ["info", "features", "steer", "watch", "demo"])
def test_help_has_an_example(command):
    assert f"sparsesteer {command}" in run(command, "--help").stdout
