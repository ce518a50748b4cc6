"""``steer``: edits of one plan for all tokens."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer import _native, reference
from sparsesteer._layout import Column, InputNorm
from sparsesteer.ops.border import check_no_gradient, check_read, check_written, flatten, split_strength, written_tensor
from sparsesteer.ops.call import call

if TYPE_CHECKING:
    from sparsesteer.plans import SteeringPlan
    from sparsesteer.sae import SAE

_steer_eager = getattr(_native.extension, "steer_eager", None)


def steer(
    h: Tensor,  # [..., D]
    plan: "SteeringPlan",
    strength: float | Tensor = 1.0,  # a number, or [...]
    *,
    into: Tensor | None = None,  # [..., D_out]
    residual: Tensor | None = None,  # [..., D]
    out: Tensor | None = None,  # [..., D_out]
    backend: str = "auto",
) -> Tensor:
    """Apply a plan's edits: into + strength * r * (sum_j d_j(h + residual) W_dec_j + constant part).

    Args:
        h: the tensor encoded (with ``residual`` added), floating point.
        strength: 0 leaves a token bit-identical; a tensor gives one strength per token.
        into: the tensor edited; h if not given.
        out: written and returned; may be ``into`` or ``h`` itself (in place).
        backend: "auto", "native", "triton" or "reference".

    Returns:
        [..., D_out] in the dtype of ``into``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, with what came and what was expected.
        RuntimeError: ``out`` while a gradient is being recorded; a named backend that cannot run.
    """
    if _steer_eager is not None and out is None and backend == "auto" and type(strength) in (float, int):
        if not plan.needs_sae and not torch.compiler.is_compiling():
            result = _steer_eager(
                h, into, residual, plan.encoder, plan.decoder, plan.rows, plan.delta_bias, strength,
                plan.input_norm, plan.scale_rule, plan.gap, plan.preserve_norm,
            )  # fmt: skip
            if result is not None:
                return result
    check_read("steer", h, plan.encoder.shape[1], "plan's SAE", plan.device)
    into = written_tensor("steer", h, into, plan.decoder.shape[1])
    check_written("steer", h, plan.decoder.shape[1], into, residual, out)
    amount = split_strength("steer", strength, h)
    if plan.rows.dtype != reference.compute_dtype(h):
        plan = plan.to(dtype=reference.compute_dtype(h))
    target = (flatten(h), flatten(into), None if residual is None else flatten(residual))
    if plan.needs_sae:
        if out is not None:
            check_no_gradient("steer", (*target, amount[0]))
        result = _whole_sae_call(target, plan, amount, backend).view(into.shape)
        return result if out is None else out.copy_(result)
    arguments = (
        *target, plan.encoder, plan.decoder, plan.rows, plan.delta_bias, *amount,
        int(plan.input_norm), int(plan.scale_rule), plan.gap, plan.preserve_norm,
    )  # fmt: skip
    if out is None:
        return call("steer", arguments, backend).view(into.shape)
    check_no_gradient("steer", arguments)
    call("steer_out", arguments, backend, out=flatten(out))
    return out


def _whole_sae_call(target: tuple, plan: "SteeringPlan", amount: tuple, backend: str) -> Tensor:
    """The result [N, D_out] of a TopK or reconstruct plan: every feature of the SAE takes part."""
    sae = plan.sae
    if sae is None:
        raise ValueError("steer: this plan needs its SAE; load it with SteeringPlan.load(path, sae=sae)")
    encoder, table = sae.whole_encoder(plan.rows.dtype)
    if not plan.reconstruct:
        arguments = (
            *target, encoder, table[:, Column.BIAS], plan.features, plan.k, plan.decoder, plan.rows, plan.delta_bias,
            *amount, int(plan.input_norm), int(plan.scale_rule), plan.gap, plan.preserve_norm,
        )  # fmt: skip
        return call("steer_topk", arguments, backend)
    decoder, bias = sae.whole_decoder(plan.rows.dtype)
    weights = encoder, table, plan.k, plan.features, plan.rows, decoder, plan.reconstruction_bias(bias)
    normed = plan.input_norm != InputNorm.NONE
    if sae.W_skip is not None or (sae.transcoder and normed):
        return _reconstructed_beside_the_op(target, plan, sae, weights, amount, backend)
    return call("steer_reconstruct", (*target, *weights, *amount, int(plan.input_norm), plan.preserve_norm), backend)


def _reconstructed_beside_the_op(
    target: tuple, plan: "SteeringPlan", sae: "SAE", weights: tuple, amount: tuple, backend: str
) -> Tensor:
    """A reconstruct plan with what the op does not know: skip connections, and norms that are not undone.

    The op makes the reconstruction alone, written to zeros at strength 1; the rest is plain torch around it.
    """
    h, into, residual = target
    token_strength, strength = amount
    x = reference.read_input(h, residual)
    norm, encoded = plan.input_norm, x
    if sae.transcoder:  # encoder rows are centred already where the norm centres
        encoded, norm = x * reference.input_scale(x, norm), InputNorm.NONE
    out = call(
        "steer_reconstruct",
        (encoded, x.new_zeros(len(x), sae.d_out), None, *weights, None, 1.0, int(norm), False),
        backend,
    )
    if sae.W_skip is not None:
        out = out + x @ sae.whole_skip(x.dtype)
    touched = torch.ones_like(out[:, :1], dtype=torch.bool)
    return reference.write_change(into, out - into.to(out.dtype), touched, token_strength, strength, plan.preserve_norm)
