"""``encode`` and ``decode``: the few active features of every token, and back."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer.ops.border import check_read, flatten
from sparsesteer.ops.call import call

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

# Columns of a first try where the number of active features is not known: few tokens can have room for many.
_FEW_TOKENS, _FIRST_WIDTH_FEW, _FIRST_WIDTH = 256, 4096, 512


class SparseCodes(NamedTuple):
    """The active features of every token, by falling activation; equal ones by rising index.

    Attributes:
        values: [..., K], 0 where padded; fp64 for fp64 input, else fp32.
        indices: int32 [..., K], -1 where padded.
        counts: int32 [...], active features of each token; above K where only the K largest had room.
    """

    values: Tensor
    indices: Tensor
    counts: Tensor

    def to_dense(self, d_sae: int) -> Tensor:
        """Activations [..., F] of all ``d_sae`` features."""
        columns = self.indices.clamp(min=0).long()
        kept = torch.where(self.indices >= 0, self.values, torch.zeros_like(self.values))
        return self.values.new_zeros(*self.values.shape[:-1], d_sae).scatter_add(-1, columns, kept)


def encode(
    h: Tensor,  # [..., D]
    sae: "SAE",
    k: int | None = None,
    backend: str = "auto",
) -> SparseCodes:
    """The active features of every token, without a tensor of all features.

    Args:
        k: columns of the result. Without it there are as many as the token with the most active features needs,
            which takes one synchronisation with the device and cannot be compiled.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        values and indices [..., k], counts [...]. A count above k says that a token has more active features: the
        row holds its k largest.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, a k that is not a positive integer.
    """
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise ValueError(f"encode: k should be a positive integer or None, got {k!r}")
    check_read("encode", h, sae.d_in, "SAE", sae.device)
    if k is not None:
        return _shaped(_encode(h, sae, k, backend), h)
    if torch.compiler.is_compiling():
        raise ValueError("encode: the width of the result must be known in compiled code; give k")
    room = sae.k or (_FIRST_WIDTH_FEW if h.shape[:-1].numel() <= _FEW_TOKENS else _FIRST_WIDTH)
    codes = _encode(h, sae, min(room, sae.d_sae), backend)
    most = int(codes.counts.max()) if codes.counts.numel() else 0
    if most > codes.values.shape[1]:
        codes = _encode(h, sae, most, backend)
    return _shaped(SparseCodes(codes.values[:, :most], codes.indices[:, :most], codes.counts), h)


def _encode(h: Tensor, sae: "SAE", width: int, backend: str) -> SparseCodes:
    encoder, table = sae.whole_encoder(reference.compute_dtype(h))
    rule = (sae.k, width, int(sae.input_norm))
    if sae.screen is None or h.dtype == torch.float64:
        return SparseCodes(*call("encode", (flatten(h), encoder, table, *rule), backend))
    screen = sae.screen.codes, sae.screen.scale, sae.screen.error
    return SparseCodes(*call("encode_screened", (flatten(h), encoder, table, *screen, *rule), backend))


def _shaped(codes: SparseCodes, h: Tensor) -> SparseCodes:
    leading = h.shape[:-1]
    values, indices = (t.reshape(*leading, t.shape[-1]) for t in codes[:2])
    return SparseCodes(values, indices, codes.counts.view(leading))


def decode(
    codes: SparseCodes,
    sae: "SAE",
    like: Tensor | None = None,  # [..., D]
    backend: str = "auto",
) -> Tensor:
    """Reconstruction [..., D_out] of sparse codes, in the dtype of their values.

    Args:
        like: the tensor that was encoded, whose mean and scale a normalising SAE gives back, and which a skip
            connection passes on.

    Raises:
        ValueError: codes whose parts do not fit each other or lie on another device than the SAE; a normalising SAE,
            or one with a skip connection, without ``like``.
        TypeError: indices that are not int32, values that are not fp32 or fp64.
    """
    values, indices = codes.values, codes.indices
    if values.dtype not in (torch.float32, torch.float64) or indices.dtype != torch.int32:
        raise TypeError(f"decode: values should be fp32 or fp64 and indices int32, got {values.dtype}, {indices.dtype}")
    if values.dim() == 0 or values.shape != indices.shape:
        raise ValueError(
            "decode: values and indices should have one shape [..., K], "
            f"got {list(values.shape)} and {list(indices.shape)}"
        )
    if not values.device == indices.device == sae.device:
        raise ValueError(f"decode: the SAE is on {sae.device}, codes on {values.device} and {indices.device}; move one")
    decoder, bias = sae.whole_decoder(values.dtype)
    out = call("decode", (flatten(values), flatten(indices), decoder, bias), backend)
    return sae.completed(out.view(*values.shape[:-1], decoder.shape[1]), like)
