"""Right before fast: every competitor's result against the reference in fp64, before any of them is timed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsesteer import ops
from sparsesteer._layout import Column
from sparsesteer.benchmarks.competitors import OURS, Transform
from sparsesteer.plans import SteeringPlan

EDIT_ERROR = 1e-5  # ||(out - h) - (want - h)|| / ||want - h|| in fp32
# whole reconstructions cancel in the others, which is their nature; the gate shows that they compute the same thing
OTHERS_EDIT_ERROR = 1e-3
BF16_OF_EDIT = 1e-2  # of an element's change, beside one unit in the last place of the result
JUMP_MARGIN = 1e-5


class WrongResult(RuntimeError):
    """A competitor does not compute what the reference computes, so nothing may be said about its speed."""


def check(transforms: Mapping[str, Transform], plan: SteeringPlan, h: Tensor, case: object) -> None:
    """Compare the results of all competitors on h [N, D].

    A token with a pre-activation within ``JUMP_MARGIN`` of a threshold is left out: rounding decides its side.

    Raises:
        WrongResult: with the competitor, the case and the error.
    """
    doubled = plan.to(dtype=torch.float64)
    x = h.double()
    z = x @ doubled.encoder.T + doubled.rows[:, Column.BIAS]
    safe = ((z - doubled.rows[:, Column.THRESHOLD]).abs() >= JUMP_MARGIN).all(-1)
    if not safe.any():
        raise WrongResult(f"{case}: every token is next to a threshold, so nothing can be compared")
    want = ops.steer(x, doubled, backend="reference")[safe]
    for name, transform in transforms.items():
        out = transform(h)
        if out.shape != h.shape or out.dtype != h.dtype:
            raise WrongResult(f"{case}: {name} gives {list(out.shape)} in {out.dtype}")
        error = edit_error(out[safe], want, h[safe])
        limit = EDIT_ERROR if name == OURS else OTHERS_EDIT_ERROR
        if not error <= (limit if h.dtype == torch.float32 else 1):
            raise WrongResult(f"{case}: {name} is wrong, its error is {error:.2g}; no speed is shown")


def edit_error(out: Tensor, want: Tensor, h: Tensor) -> float:
    """fp32: the error of the edit relative to the edit. bf16: the largest error of an element over what is allowed."""
    change, miss = want - h.double(), (out.double() - want).abs()
    if out.dtype == torch.float32:
        return (miss.norm() / change.norm()).item()
    unit = torch.ldexp(torch.ones_like(want), torch.frexp(want).exponent - 8)
    return (miss / (unit + BF16_OF_EDIT * change.abs())).max().item()
