"""The Python of docs/edits.md and docs/sharing.md runs as it stands, with a small SAE in place of the downloaded."""

import re
from pathlib import Path

import pytest
import torch
from fake_hub import TOKEN
from models import llama
from test_hub import hub  # noqa: F401, a fixture

import sparsesteer as ss
from sparsesteer import Explanations, neuronpedia

DOCS = Path(__file__).parents[1] / "docs"


def small_sae(width):
    g = torch.Generator().manual_seed(0)
    sae = ss.SAE(
        W_enc=torch.randn(width, 200, generator=g),
        W_dec=torch.randn(200, width, generator=g),
        activation=ss.ReLU(),
        site=ss.Site("gpt2", "blocks.1.hook_resid_post", neuronpedia_id="gpt2-small/8-res-jb"),
        feature_maximum=torch.rand(200, generator=g) + 1,
    )
    lists = [[("elephants", 3.0)] if feature == 8 else [] for feature in range(200)]
    sae.explanations = Explanations.of(lists, method="by hand", method_version="1")
    return sae


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def run(page, names):
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)
    return names


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_edits(in_folder, monkeypatch, capsys):
    sae, asked = small_sae(48), []
    monkeypatch.setattr(ss.SAE, "from_pretrained", lambda *names: asked.append(names) or sae)
    monkeypatch.setattr(
        neuronpedia,
        "_published_saes",
        lambda: {"gpt2-small/8-res-jb": ("gpt2-small-res-jb", "blocks.8.hook_resid_pre")},
    )
    names = run("edits.md", {})
    assert capsys.readouterr().out.startswith("8 3.0 ['elephants']")
    assert asked == [("gpt2-small-res-jb", "blocks.8.hook_resid_pre")] * 2
    assert names["plan"].features.tolist() == [99] and sae.explanations.feature("song") == 0


def test_sharing(in_folder, monkeypatch, hub):  # noqa: F811
    model = llama()
    sae = small_sae(model.config.hidden_size)
    (yaml,) = blocks("sharing.md", "yaml")
    (in_folder / "elephants.yaml").write_text(yaml)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "max_new_tokens": 2}
    names = run("sharing.md", {"sae": sae, "model": model, "inputs": inputs})
    assert names["spec"] == ss.load_spec("elephants.json") == ss.load_spec("elephants.yaml")
    assert names["plan"].features.tolist() == [5, 6, 8, 99, 123]
    assert "you/elephants" in hub.repositories
    assert {path.name for path in in_folder.glob("*.gguf")} == {"vector.gguf", "vectors.gguf"}
