"""From checked arguments to the implementation that runs them."""

from typing import Any

import torch
from torch import Tensor

from sparsesteer import _dispatch, reference
from sparsesteer.ops.border import records_gradient


def call(op: str, arguments: tuple, backend: str, **out: Tensor) -> Any:
    """Through the dispatcher, unless the call names a backend that the dispatcher would not take."""
    if backend == "auto":
        return getattr(torch.ops.sparsesteer, op)(*arguments, **out)
    x, stem = arguments[0], op.removesuffix("_out")
    chosen = _dispatch.resolve(backend, x, stem)
    if chosen == "reference":
        result = getattr(reference, stem)(*arguments)
        return out["out"].copy_(result) if out else result
    if chosen == _dispatch.resolve("auto", x, stem):
        return getattr(torch.ops.sparsesteer, op)(*arguments, **out)
    if records_gradient(arguments):
        raise RuntimeError(
            f"{stem}: backend={backend!r} on {x.device} runs without autograd here; set SPARSESTEER_BACKEND={backend} "
            "before the import, or call under torch.no_grad()"
        )
    return _dispatch.implementation(op, chosen, x.device.type)(*arguments, **out)
