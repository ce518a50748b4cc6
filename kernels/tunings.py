"""Block sizes that somebody measured: tunings/<device>.json, written by ``sparsesteer bench --tune``.

For devices and shapes without an entry the rules of ``tiling`` hold. Nothing is measured while a model runs.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from sparsesteer.kernels.tiling import power_of_two

FOLDER = Path(__file__).parent / "tunings"

Tiling = TypeVar("Tiling", bound=Any)  # a NamedTuple of block sizes
Entries = dict[str, dict[str, int]]  # fields that replace those of the rule, by shape class


def tuned(op: str, tiling: Tiling, sizes: tuple[int, ...], device: torch.device) -> Tiling:
    """The rule's ``tiling`` with what was measured for the op at these sizes on this device."""
    measured = entries(op, device)
    return tiling._replace(**measured.get(shape_class(*sizes), {})) if measured else tiling


@cache
def entries(op: str, device: torch.device) -> Entries:
    """All that was measured for an op on a device; one dictionary for the whole process."""
    if device.type != "cuda":
        return {}
    path = file_of(torch.cuda.get_device_name(device))
    return json.loads(path.read_text()).get(op, {}) if path.is_file() else {}


def shape_class(*sizes: int) -> str:
    """Sizes in steps of two: "1 64 4096 4096" for one token, 64 rows and widths from 2049 to 4096."""
    return " ".join(str(power_of_two(size)) for size in sizes)


def file_of(device_name: str) -> Path:
    """Where the table of a device lies, whether there is one or not."""
    return FOLDER / f"{re.sub('[^a-z0-9]+', '-', device_name.lower())}.json"
