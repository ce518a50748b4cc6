"""``steer_slots``: a batch whose tokens follow different plans."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer.ops.border import check_no_gradient, check_read, check_written, flatten, split_strength, written_tensor
from sparsesteer.ops.call import call

if TYPE_CHECKING:
    from sparsesteer.bank import Bank


def steer_slots(
    h: Tensor,  # [..., D]
    bank: "Bank",
    slot: Tensor,  # int32 [...]
    strength: float | Tensor | None = None,  # a number, or [...]
    *,
    into: Tensor | None = None,  # [..., D_out]
    residual: Tensor | None = None,  # [..., D]
    out: Tensor | None = None,  # [..., D_out]
    backend: str = "auto",
) -> Tensor:
    """``steer`` with the plan that each token's slot holds.

    Only the bank's tables are read, at addresses that never change: a CUDA graph holds the call, and plans may come
    and go between its replays.

    Args:
        slot: as ``bank.add`` gave it, -1 for tokens that are not steered. A slot that is empty, or that the bank does
            not have, steers nothing: values on a device cannot be checked without waiting for it.
        strength: 1 if not given; 0 leaves a token bit-identical.

    Returns:
        [..., D_out] in the dtype of ``into``; tokens without a plan keep their bits.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, with what came and what was expected.
        RuntimeError: ``out`` while a gradient is being recorded; a named backend that cannot run.
    """
    check_read("steer_slots", h, bank.encoder.shape[1], "bank", bank.device)
    into = written_tensor("steer_slots", h, into, bank.decoder.shape[1])
    check_written("steer_slots", h, bank.decoder.shape[1], into, residual, out)
    if slot.dtype != torch.int32:
        raise TypeError(f"steer_slots: slot should be int32, got {slot.dtype}; convert it with slot.int()")
    if slot.shape != h.shape[:-1] or slot.device != h.device:
        raise ValueError(
            f"steer_slots: slot should have shape {list(h.shape[:-1])}, one per token, on {h.device}, "
            f"got {list(slot.shape)} on {slot.device}"
        )
    amount = split_strength("steer_slots", 1.0 if strength is None else strength, h)
    if bank.rows.dtype != reference.compute_dtype(h):
        raise TypeError(
            f"steer_slots: the bank's tables are {bank.rows.dtype}, h of {h.dtype} needs "
            f"{reference.compute_dtype(h)}; make the bank from a plan of that dtype"
        )
    arguments = (
        flatten(h), flatten(into), None if residual is None else flatten(residual), slot.reshape(-1), bank.slots,
        bank.encoder, bank.decoder, bank.entry_row, bank.rows, bank.slot_bias, *amount,
        int(bank.input_norm), int(bank.scale_rule), bank.gap, bank.preserve_norm,
    )  # fmt: skip
    if out is None:
        return call("steer_slots", arguments, backend).view(into.shape)
    check_no_gradient("steer_slots", arguments)
    call("steer_slots_out", arguments, backend, out=flatten(out))
    return out
