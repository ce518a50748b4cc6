"""From an SAE's weights to what is decoded: its rows, and what comes to them from the token that was encoded."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer import reference, weights
from sparsesteer.ops.border import check_last

if TYPE_CHECKING:
    from sparsesteer.sae import SAE


def fold_decoder(sae: "SAE", rows: Tensor) -> Tensor:
    """Decoder rows [M, D] for activations in the SAE's units; a row of zeros stays one."""
    rows = weights.at_least_fp32(rows)
    if not sae.rescale_acts_by_decoder_norm:
        return rows
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))


def whole_decoder(sae: "SAE", dtype: torch.dtype) -> Tensor:
    """Every feature's decoder row [F, D_out], contiguous, in the dtype of ``lowering.whole_encoder``."""
    rows = weights.whole("W_dec", sae.W_dec)
    return (rows if stays_bf16(sae, dtype) else fold_decoder(sae, rows).to(dtype)).contiguous()


def whole_skip(sae: "SAE", dtype: torch.dtype) -> Tensor:
    """W_skip as [D, D_out], for products from the left."""
    assert sae.W_skip is not None
    return weights.whole("W_skip", sae.W_skip).T.to(dtype).contiguous()


def stays_bf16(sae: "SAE", dtype: torch.dtype) -> bool:
    """True if whole rows are given as they are, in bf16: kernels want both matrices in one dtype."""
    folded = sae.rescale_acts_by_decoder_norm or sae.normalize == "layer_norm"
    narrow = sae.W_enc.dtype == sae.W_dec.dtype == torch.bfloat16
    return narrow and not folded and dtype == torch.float32


def completed(sae: "SAE", out: Tensor, like: Tensor | None) -> Tensor:
    """What is decoded [..., D_out], at the scale and mean of the token ``like`` [..., D] and with W_skip times it."""
    normed = sae.normalize != "none" and not sae.transcoder
    if not normed and sae.W_skip is None:
        return out
    if like is None:
        cause = f"normalize={sae.normalize!r}" if normed else "a skip connection"
        raise ValueError(f"SAE.decode: {cause} needs the encoded tensor: decode(f, like=h)")
    check_last("SAE.decode", "like", like, sae.d_in)
    like = like.to(out.dtype)
    if normed:
        out = reference.undo_input_norm(out, like, sae.input_norm)
    return out if sae.W_skip is None else out + like @ sae.whole_skip(out.dtype)
