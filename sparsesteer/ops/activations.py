"""``activations``: what the features of a plan do on every token, nothing edited."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer import _native, reference
from sparsesteer._layout import Column
from sparsesteer.ops.border import check_read, check_written, flatten
from sparsesteer.ops.call import call

if TYPE_CHECKING:
    from sparsesteer.plans import SteeringPlan

_activations_eager = getattr(_native.extension, "activations_eager", None)


def activations(
    h: Tensor,  # [..., D]
    plan: "SteeringPlan",
    *,
    residual: Tensor | None = None,  # [..., D]
    backend: str = "auto",
) -> Tensor:
    """The activations f [..., M] of a plan's features on h (+ residual), as ``steer`` finds them before it edits.

    On the CPU they are those numbers bit for bit. Nothing is decoded, and of a TopK SAE nothing of all tokens and all
    features is made: those that come before a plan's features are counted.

    Args:
        h: the tensor encoded (with ``residual`` added), floating point.
        plan: its columns are ``plan.features``; a constant edit has no activation and is not among them.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        [..., M], fp64 for fp64 input, else fp32.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, with what came and what was expected.
        RuntimeError: a named backend that cannot run.
    """
    if _activations_eager is not None and backend == "auto" and not plan.needs_sae:
        if not torch.compiler.is_compiling():
            f = _activations_eager(h, residual, plan.encoder, plan.rows, plan.input_norm)
            if f is not None:
                return f
    check_read("activations", h, plan.encoder.shape[1], "plan's SAE", plan.device)
    check_written("activations", h, h.shape[-1], h, residual, None)
    if plan.rows.dtype != reference.compute_dtype(h):
        plan = plan.to(dtype=reference.compute_dtype(h))
    source = flatten(h), None if residual is None else flatten(residual)
    if plan.needs_sae:
        if plan.sae is None:
            raise ValueError("activations: this plan needs its SAE; load it with SteeringPlan.load(path, sae=sae)")
        encoder, table = plan.sae.whole_encoder(plan.rows.dtype)
        arguments = (*source, encoder, table[:, Column.BIAS], plan.features, plan.k, plan.rows, int(plan.input_norm))
        f = call("activations_topk", arguments, backend)
    else:
        f = call("activations", (*source, plan.encoder, plan.rows, int(plan.input_norm)), backend)
    return f.view(*h.shape[:-1], len(plan))
