"""Loads the compiled extension, or keeps the reason why not."""

import os
from importlib import util
from types import ModuleType

import torch

from sparsesteer import _schemas  # noqa: F401 - the ops must exist before the extension implements them

_BACKENDS_WITHOUT_EXTENSION = ("reference", "triton")


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _load() -> tuple[ModuleType | None, str]:
    """The extension module and "", or None and the reason."""
    wanted = os.environ.get("SPARSESTEER_BACKEND", "auto")
    if wanted in _BACKENDS_WITHOUT_EXTENSION:
        return None, f"SPARSESTEER_BACKEND={wanted} asks for another backend"
    if util.find_spec("sparsesteer._C") is None:
        try:
            from sparsesteer._build_result import REASON
        except ImportError:
            REASON = "this installation was built without it (SPARSESTEER_BUILD=none)"
        return None, REASON
    # the torch it was built with stands in a file of its own: a foreign extension must not be opened to be asked
    from sparsesteer._build_result import TORCH_VERSION

    if _minor(TORCH_VERSION) != _minor(torch.__version__):
        return None, (
            f"built with torch {TORCH_VERSION}, running torch {torch.__version__}: "
            "reinstall sparsesteer with --no-build-isolation"
        )
    try:
        from sparsesteer import _C
    except ImportError as error:
        return None, f"the extension does not load: {error}"
    return _C, ""


extension, reason = _load()


def build_info() -> dict[str, str]:
    """What the extension was built with and runs on; empty without one."""
    return dict(extension.build_info()) if extension is not None else {}
