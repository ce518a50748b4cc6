"""How much a plan puts into the residual stream, relative to what is there.

The dose is the norm of the plan's constant part, sum_j c0_j W_dec_j + bias, all gates open, divided by the norm of the
stream: what set, add and floor bring in, whatever the token. Scaling, capping and ablating have no such part: they
change what is there, by factors that stand in the plan.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsesteer._layout import Column, OutputScale
from sparsesteer.plans import SteeringPlan

if TYPE_CHECKING:
    from sparsesteer.serving.served_spec import ServedSpec


def dose_of(spec: "ServedSpec", stream_norms: Mapping[int, float], where: str) -> float:
    """The largest dose of a spec's plans, at its own strength.

    Args:
        stream_norms: of the residual stream after a block.

    Raises:
        ValueError: the stream's norm is needed at a block where it is not given.
    """
    plans = spec.by_block().items()
    return max(abs(spec.strength) * _dose(plan, block, stream_norms, where) for block, plan in plans)


def measured_stream_norms(model: Any, token_ids: Tensor, blocks: list[int]) -> dict[int, float]:
    """The median norm of the residual stream after some blocks of a Hugging Face model, for ``stream_norm``.

    Args:
        token_ids: [B, T] of ordinary text. The first token of each row, an attention sink in many models, is left out.

    Raises:
        ValueError: the last block or none; what Hugging Face shows of the last one has gone through a norm.
    """
    with torch.no_grad():
        states = model(token_ids, output_hidden_states=True).hidden_states
    if not all(0 <= block < len(states) - 2 for block in blocks):
        raise ValueError(f"blocks should be numbers from 0 to {len(states) - 3}, got {blocks}")
    return {block: float(states[block + 1][:, 1:].float().norm(dim=-1).median()) for block in blocks}


def _dose(plan: SteeringPlan, block: int, stream_norms: Mapping[int, float], where: str) -> float:
    if plan.scale_rule == OutputScale.GAP_FILL:  # a mean of decoder rows, gap long
        longest = plan.decoder.float().norm(dim=1).max() if len(plan) else 0.0
        return _relative(float(plan.gap * longest), block, stream_norms, where)
    constant = plan.rows[:, Column.C0] @ plan.decoder.to(plan.rows.dtype)
    if plan.delta_bias is not None:
        constant = constant + plan.delta_bias
    norm = float(constant.norm())
    if plan.scale_rule == OutputScale.NORM:
        return norm
    if plan.scale_rule in (OutputScale.RMS, OutputScale.STD):  # std(x) is at most ||x|| / sqrt(D - 1)
        return norm / math.sqrt(len(constant) - (plan.scale_rule == OutputScale.STD))
    return _relative(norm, block, stream_norms, where)


def _relative(norm: float, block: int, stream_norms: Mapping[int, float], where: str) -> float:
    if norm == 0:
        return 0.0
    if block not in stream_norms:
        known = ", ".join(map(str, sorted(stream_norms))) or "none"
        raise ValueError(
            f"{where}: a dose is limited, and the norm of the stream after block {block} is not known; "
            f"limits.stream_norm has blocks {known}; sparsesteer.serving.measured_stream_norms finds it"
        )
    return norm / stream_norms[block]
