"""The examples of docs/watching.md run as they stand, with a tiny model in place of the downloaded one."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from models import llama

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).parents[1] / "docs/watching.md"


class Tokenizer:
    def __call__(self, text, return_tensors):
        ids = torch.tensor([[ord(c) % 59 + 1 for c in text]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        return "".join(f" {i}" for i in ids)


def test_examples_run(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model = llama()
    model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    sae = ss.SAE(
        W_enc=torch.randn(model.config.hidden_size, 2000, generator=generator) * 20,
        W_dec=torch.randn(2000, model.config.hidden_size, generator=generator),
        activation=ss.JumpReLU(threshold=1.0),
        site=ss.Site("a/model", "blocks.1.hook_resid_post"),
    )
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda name: model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: Tokenizer())
    monkeypatch.setattr(ss.SAE, "from_pretrained", lambda release, sae_id: sae)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    recording = names["recording"]
    assert recording.before.shape == (len("The ship left the harbour") + 29, 2)
    assert not torch.equal(recording.before, recording.after)
    assert {path.name for path in tmp_path.iterdir()} == {"ship.html", "ship.png", "ship.safetensors"}
    assert torch.equal(ss.Recording.load("ship.safetensors").after, recording.after)
    assert "feature 99 at token" in capsys.readouterr().out
