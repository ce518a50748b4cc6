"""What a call needs beside its arguments and its result, at its peak."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_extra(call: Callable[[], Any], device: str) -> tuple[Any, int | None]:
    """(result, bytes beyond what was there before and the result itself).

    A CPU counts pages of 4 KiB that the kernel saw touched, a hundred of them give or take; None on systems that cannot
    reset their peak. A CUDA device counts what torch's allocator handed out.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        return result, torch.cuda.max_memory_allocated() - before - _n_bytes(result)
    if not _reset_peak():
        return call(), None
    before = _resident("VmRSS")
    result = call()
    return result, max(0, _resident("VmHWM") - before - _n_bytes(result))


def _reset_peak() -> bool:
    try:
        # memory that is free but kept would hide what the call allocates
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK)
    except (OSError, AttributeError):
        return False
    return True


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", _STATUS.read_text())
    assert found, field
    return int(found[1]) << 10


def _n_bytes(result: Any) -> int:
    tensors = [result] if isinstance(result, Tensor) else result
    return sum(tensor.nbytes for tensor in tensors)
