"""The ops that write an edit into a tensor."""

import torch
from torch import Tensor

from sparsesteer.reference.codes import activations, activations_topk, dense_codes
from sparsesteer.reference.rules import (
    apply_deltas,
    edit_deltas,
    inactive_deltas,
    read_input,
    undo_input_norm,
    write_change,
)


def steer(
    x: Tensor,  # [N, D] tensor read
    into: Tensor,  # [N, D_out] tensor written to
    residual: Tensor | None,  # [N, D] added to x before encoding
    encoder: Tensor,  # [M, D]
    decoder: Tensor,  # [M, D_out]
    rows: Tensor,  # [M, 10]
    delta_bias: Tensor | None,  # [D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> Tensor:
    """w' = w + s r (sum_j d_j decoder_j + bias), every d_j from the x that entered; [N, D_out]."""
    x = read_input(x, residual)
    d = edit_deltas(activations(x, None, encoder, rows, input_norm), rows.to(x.dtype))
    return apply_deltas(x, into, d, decoder, delta_bias, token_strength, strength, scale_rule, gap, preserve_norm)


def steer_topk(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [F, D], the whole SAE's (any strides), scaled by the decoder norms where it ranks by them
    encoder_bias: Tensor,  # [F]
    features: Tensor,  # int64 [M]
    k: int,
    decoder: Tensor,  # [M, D_out]
    rows: Tensor,  # [M, 10], its BIAS column unused
    delta_bias: Tensor | None,  # [D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> Tensor:
    """``steer`` where a feature is active iff z_j > 0 and fewer than k features come before it; [N, D_out]."""
    x = read_input(x, residual)
    f = activations_topk(x, None, encoder, encoder_bias, features, k, rows, input_norm)
    d = edit_deltas(f, rows.to(x.dtype))
    return apply_deltas(x, into, d, decoder, delta_bias, token_strength, strength, scale_rule, gap, preserve_norm)


def steer_reconstruct(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    encoder: Tensor,  # [F, D]
    table: Tensor,  # [F, 10], without edits
    k: int,
    features: Tensor,  # int64 [M], ascending
    rows: Tensor,  # [M, 10], of which the edits are read
    decoder: Tensor,  # [F, D_out]
    bias: Tensor,  # [D_out], the decoder's plus everything that edits add to an SAE of which nothing is active
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    preserve_norm: bool,
) -> Tensor:
    """w + s * (decode(edit(encode(x))) - w): at s = 1 the SAE's edited reconstruction, error dropped.

    An active edited feature's code is f_j + d_j(f_j) - d_j(0); ``bias`` holds sum_j d_j(0) decoder_j.
    """
    x = read_input(x, residual)
    codes = dense_codes(x, encoder, table, k, input_norm)
    f, edits = codes[:, features], rows.to(x.dtype)
    change = edit_deltas(f, edits) - inactive_deltas(edits)
    codes = codes.index_add(1, features, torch.where(f != 0, change, torch.zeros_like(change)))
    out = undo_input_norm(codes @ decoder.to(x.dtype) + bias.to(x.dtype), x, input_norm)
    touched = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
    return write_change(into, out - into.to(x.dtype), touched, token_strength, strength, preserve_norm)


def steer_slots(
    x: Tensor,  # [N, D]
    into: Tensor,  # [N, D_out]
    residual: Tensor | None,  # [N, D]
    slot: Tensor,  # int32 [N], -1 (or any number without a slot) for none
    slots: Tensor,  # int32 [S, 3]: first entry, number of entries, 1 if the slot has a bias
    encoder: Tensor,  # [R, D] rows shared by all slots
    decoder: Tensor,  # [R, D_out]
    entry_row: Tensor,  # int32 [P], the shared row of each entry
    rows: Tensor,  # [P, 10], one per entry
    slot_bias: Tensor,  # [S, D_out]
    token_strength: Tensor | None,  # [N]
    strength: float,
    input_norm: int,
    scale_rule: int,
    gap: float,
    preserve_norm: bool,
) -> Tensor:
    """``steer`` with the plan of each token's own slot; [N, D_out]."""
    out = into.clone()
    for s, (first, count, has_bias) in enumerate(slots.tolist()):
        chosen = (slot == s).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        shared = entry_row[first : first + count].long()
        out[chosen] = steer(
            x[chosen],
            into[chosen],
            None if residual is None else residual[chosen],
            encoder[shared],
            decoder[shared],
            rows[first : first + count],
            slot_bias[s] if has_bias else None,
            None if token_strength is None else token_strength[chosen],
            strength,
            input_norm,
            scale_rule,
            gap,
            preserve_norm,
        )
    return out
