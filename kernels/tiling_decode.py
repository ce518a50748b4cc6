"""Block sizes of ``decode`` and ``steer_reconstruct``: plain functions of the shape."""

from typing import NamedTuple

from sparsesteer.kernels.tiling import PROGRAMS, ceil_div, power_of_two

GATHER = 4096  # elements of a gathered tile: 16 KB of fp32 on their way to each program
WIDTHS = (256, 128, 64, 32, 16)  # 16 columns of bf16 are a sector of 32 bytes, the least that memory is read by


class DecodeTiling(NamedTuple):
    """How a gather of decoder rows is cut into programs of one token and a block of the width."""

    codes: int  # decoder rows read at a time
    width: int  # columns of a program
    warps: int = 4


def decode_tiling(n: int, k: int, out_width: int) -> DecodeTiling:
    """The tiling for N tokens, K codes of each and the width written."""
    width = next((w for w in WIDTHS if n * ceil_div(out_width, w) >= PROGRAMS), WIDTHS[-1])
    return DecodeTiling(min(power_of_two(max(1, k)), 128, GATHER // width), width)
