"""Block sizes of ``decode`` and ``steer_reconstruct``: plain functions of the shape."""

from typing import NamedTuple

from sparsesteer.kernels.tiling import MAX_REGISTERS, PROGRAMS, ceil_div, power_of_two

GATHER = 4096  # elements of a gathered tile: 16 KB of fp32 on their way to each program
L2_BYTES = 24 << 20  # half of what an H100 has
WIDTHS = (256, 128, 64, 32, 16)  # 16 columns of bf16 are a sector of 32 bytes, the least that memory is read by


class DecodeTiling(NamedTuple):
    """How a gather of decoder rows is cut into programs of one token and a block of the width."""

    codes: int  # decoder rows read at a time
    width: int  # columns of a program
    warps: int = 4


def decode_tiling(n: int, k: int, out_width: int, decoder_bytes: int) -> DecodeTiling:
    """The tiling for N tokens, K codes of each, the width written and the bytes of the decoder.

    Programs of one block of the width run together: tokens find rows in the L2 cache that others have read.
    """

    def serves(width: int) -> bool:
        fits = width <= 64 or decoder_bytes * width <= L2_BYTES * out_width
        return fits and n * ceil_div(out_width, width) >= PROGRAMS

    width = next(filter(serves, WIDTHS), WIDTHS[-1])
    return DecodeTiling(min(power_of_two(max(1, k)), 128, GATHER // width), width)


class DenseTiling(NamedTuple):
    """How tokens with many active features are reconstructed from all of them."""

    tokens: int  # tokens of a program
    features: int  # features at a time
    step: int  # columns of the encoder read at a time
    width: int  # columns of the decoder read at a time
    span: int  # features of a program, a multiple of ``features``
    warps: int = 4

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        return {"num_warps": self.warps, "maxnreg": MAX_REGISTERS}


def dense_tiling(n: int, n_features: int) -> DenseTiling:
    """The tiling for N tokens and F features: few tokens share the features out."""
    tokens, features = 16 if n <= 1024 else 32, 32
    blocks = ceil_div(n_features, features)
    slices = max(1, min(blocks, PROGRAMS // max(1, ceil_div(n, tokens))))
    return DenseTiling(tokens, features, step=32, width=64, span=features * ceil_div(blocks, slices))
