"""The README's example runs as it stands, with a tiny model in place of the downloaded one."""

import re
from pathlib import Path

import torch
import transformers
from models import llama

import sparsesteer as ss

ROOT = Path(__file__).parents[1]


class Tokenizer:
    all_special_ids = (0,)

    def apply_chat_template(self, chat, add_generation_prompt, return_tensors, return_dict):
        ids = torch.tensor([[0, *(ord(c) % 60 + 1 for c in chat[0]["content"])]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, ids, skip_special_tokens):
        return " ".join(str(int(i)) for i in ids)


def run_example(monkeypatch, capsys, feature_scale):
    model = llama()
    width = model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    sae = ss.SAE(
        W_enc=torch.randn(width, 2000, generator=generator),
        W_dec=torch.randn(2000, width, generator=generator) * feature_scale,
        activation=ss.JumpReLU(threshold=1.0),
        site=ss.Site("a/model", "blocks.1.hook_resid_post"),
    )
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda name: model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: Tokenizer())
    monkeypatch.setattr(ss.SAE, "from_pretrained", lambda release, sae_id: sae)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    return blocks[0], capsys.readouterr().out


def test_example_runs_and_steers(monkeypatch, capsys):
    code, steered = run_example(monkeypatch, capsys, 1.0)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    _, unsteered = run_example(monkeypatch, capsys, 0.0)
    assert steered != unsteered
