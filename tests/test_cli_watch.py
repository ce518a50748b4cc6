"""``sparsesteer watch`` on a tiny model: its table, its JSON, its page and picture, its errors."""

import pytest
import torch
from test_cli import error_of, run, run_json, tiny  # noqa: F401 - tiny: the folders of a model and an SAE
from tiny_model import N_FEATURES
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparsesteer as ss

WATCH = ("watch", "seven ships wait", "--raw")


def places(tiny):  # noqa: F811
    return "-m", tiny[0], "-s", tiny[1]


def sequence_of(printed):
    [sequence] = printed["recording"]["sequences"]
    return sequence


def test_it_shows_the_saes_activations(tiny):  # noqa: F811
    got = run_json(*WATCH, *places(tiny), "--features", "5,3")
    tokenizer, sae = AutoTokenizer.from_pretrained(tiny[0]), ss.SAE.load_from_disk(tiny[1])
    ids = tokenizer("seven ships wait", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tiny[0])
        codes = sae.encode(model(ids, output_hidden_states=True).hidden_states[2][0])
    assert [each["feature"] for each in got["recording"]["features"]] == [5, 3]
    sequence = sequence_of(got)
    torch.testing.assert_close(torch.tensor(sequence["before"]), codes[:, [5, 3]], rtol=1e-4, atol=1e-4)
    assert sequence["after"] == sequence["before"]
    assert "".join(sequence["texts"]).split() == ["seven", "ships", "wait"]


def test_an_edit_changes_what_leaves_and_not_the_first_token(tiny):  # noqa: F811
    got = run_json(*WATCH, *places(tiny), "-f", "3", "-e", "set:3=40")
    sequence = sequence_of(got)
    changed = [before != after for before, after in zip(sequence["before"], sequence["after"], strict=True)]
    assert changed == [False, True, True] and got["edits"] == ["set:3=40"]
    assert "->" in run(*WATCH, *places(tiny), "-f", "3", "-e", "set:3=40").stdout


def test_the_model_may_go_on_at_another_layer(tiny):  # noqa: F811
    got = run_json(*WATCH, *places(tiny), "-f", "3", "--max-new-tokens", 4, "--layer", 0)
    assert sequence_of(got)["generated"] == [False] * 3 + [True] * 3
    assert got["recording"]["features"] == [{"site": "blocks.0.hook_resid_post", "feature": 3}]


def test_table_page_and_picture(tiny, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "page.html", tmp_path / "picture.png"
    printed = run(*WATCH, *places(tiny), "-f", "3,5", "--html", page, "--plot", picture).stdout
    assert "ships" in printed and "->" not in printed
    assert "page.html" in printed.replace("\n", "") and "ships" in page.read_text()
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-f", "3,x"], "'x' is not a feature"),
        (["-f", ""], "'' is not a feature"),
        (["-f", f"{N_FEATURES}"], "out of range"),
        (["-f", "3,3"], "feature 3 is named twice"),
        (["-f", "3", "-e", "set:3"], "'3' should be feature=value"),
        (["-f", "3", "--layer", "9"], "record: there is no block 9"),
        (["-f", "3", "--plot", "some.docx"], "end with .png"),
    ],
)
def test_user_errors_in_one_line(tiny, options, message):  # noqa: F811
    assert message in error_of(*WATCH, *places(tiny), *options)
