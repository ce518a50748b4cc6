"""Plain torch, the truth of every op: same names and arguments as ``torch.ops.sparsesteer``.

Arithmetic is fp64 where x is fp64 and fp32 otherwise; results come in the dtype of the tensor written.
Letters: N tokens, D model width, F features, M edited features, K active features, S slots.
"""

from sparsesteer.reference.codes import (
    activations,
    activations_topk,
    decode,
    dense_codes,
    encode,
    encode_screened,
    rank_within,
)
from sparsesteer.reference.information import mutual_information
from sparsesteer.reference.rules import (
    activate,
    apply_deltas,
    compute_dtype,
    edit_deltas,
    inactive_deltas,
    input_scale,
    output_scale,
    read_input,
    undo_input_norm,
    write_change,
)
from sparsesteer.reference.steering import steer, steer_reconstruct, steer_slots, steer_topk

__all__ = [
    "activate",
    "activations",
    "activations_topk",
    "apply_deltas",
    "compute_dtype",
    "decode",
    "dense_codes",
    "edit_deltas",
    "encode",
    "encode_screened",
    "inactive_deltas",
    "input_scale",
    "mutual_information",
    "output_scale",
    "rank_within",
    "read_input",
    "steer",
    "steer_reconstruct",
    "steer_slots",
    "steer_topk",
    "undo_input_norm",
    "write_change",
]
