"""How a change enters the tensor that is written: on one tile, or on whole rows where their length is kept."""

import triton
import triton.language as tl


@triton.jit
def write_tile(
    change, touched, scale, strength, token_strength_ptr, token_strength_stride, bias_ptr,
    into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr,
    tokens, in_tokens, columns, in_columns, out_width, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """into + strength * scale * (change + bias), where there is something to add.

    With ``change_ptr`` the change is left there, and its factor [N], for ``keep_norm`` to write.
    """
    if bias_ptr is not None:
        change += tl.load(bias_ptr + columns, in_columns, other=0.0)[None, :]
        touched = in_tokens
    factor = scale * strength
    if token_strength_ptr is not None:
        factor *= tl.load(token_strength_ptr + tokens * token_strength_stride, in_tokens, other=0.0)
    factor = tl.where(touched, factor, 0.0)
    edited = factor != 0
    inside = in_tokens[:, None] & in_columns[None, :]
    if change_ptr is not None:
        tl.store(change_ptr + tokens[:, None] * out_width + columns[None, :], factor[:, None] * change, inside)
        if tl.program_id(1) == 0:
            tl.store(factor_ptr + tokens, factor, in_tokens)
    else:
        if IN_PLACE:
            inside = inside & edited[:, None]
        w = tl.load(into_ptr + tokens[:, None] * into_stride + columns[None, :], inside, other=0.0)
        steered = (w.to(tl.float32) + factor[:, None] * change).to(w.dtype)
        out = tl.where(edited[:, None], steered, w)
        tl.store(out_ptr + tokens[:, None] * out_stride + columns[None, :], out, inside)


@triton.jit
def keep_norm(
    into_ptr, into_stride, out_ptr, out_stride, change_ptr, factor_ptr, width, STEP: tl.constexpr,
):  # fmt: skip
    """(into + change) ||into|| / ||into + change|| for one token; bit for bit ``into`` where the factor is 0."""
    token = tl.program_id(0).to(tl.int64)
    edited = tl.load(factor_ptr + token) != 0
    before = tl.zeros([STEP], tl.float32)
    after = tl.zeros([STEP], tl.float32)
    for first in range(0, width, STEP):
        columns = first + tl.arange(0, STEP)
        w = tl.load(into_ptr + token * into_stride + columns, columns < width, other=0.0).to(tl.float32)
        steered = w + tl.load(change_ptr + token * width + columns, columns < width, other=0.0)
        before += w * w
        after += steered * steered
    length = tl.sqrt(tl.sum(after, axis=0))
    ratio = tl.where(length > 0, tl.sqrt(tl.sum(before, axis=0)) / length, 1.0)
    for first in range(0, width, STEP):
        columns = first + tl.arange(0, STEP)
        w = tl.load(into_ptr + token * into_stride + columns, columns < width, other=0.0)
        steered = w.to(tl.float32) + tl.load(change_ptr + token * width + columns, columns < width, other=0.0)
        out = tl.where(edited, (steered * ratio).to(w.dtype), w)
        tl.store(out_ptr + token * out_stride + columns, out, columns < width)
