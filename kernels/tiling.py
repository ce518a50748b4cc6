"""Block sizes of the Triton kernels: plain functions of the shape, so that no call ever tunes, waits or surprises."""

from typing import NamedTuple

PROGRAMS = 256  # about two for each multiprocessor of a large GPU
MAX_SPLITS = {1: 32, 16: 16, 32: 8, 64: 1}  # by tokens of a program: every expand program adds them all up
MAX_REGISTERS = 240  # unless a limit is named, ptxas spills a few bytes to fit more blocks on a multiprocessor
KEEP_NORM_STEP = 1024
MIN_DOT = 16  # the smallest side of a tensor-core product


class SteerTiling(NamedTuple):
    """How ``steer`` is cut into programs.

    With ``splits`` > 1 (decode form) a shrink program sees a part of the width and leaves partial products, which
    every expand program adds up; with 1 (prefill form) it sees the whole width and leaves finished edits.
    """

    tokens: int  # tokens of a program; 1 multiplies without tensor cores
    shrink_rows: int
    shrink_step: int  # columns read at a time
    splits: int
    split_width: int  # columns of a split, a multiple of shrink_step
    expand_rows: int  # rows read at a time
    expand_width: int
    warps: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told. Eight warps fill a multiprocessor alone, with all the registers that there are."""
        return {"num_warps": self.warps, "maxnreg": 255 if self.warps == 8 else MAX_REGISTERS}


def steer_tiling(n: int, m: int, width: int, out_width: int) -> SteerTiling:
    """The tiling for N tokens, M rows and the widths read and written."""
    tokens = _tokens(n)
    tiles = ceil_div(n, tokens)
    rows = _shrink_rows(tokens, m)
    step = 128 if tokens == 1 else 32
    steps = ceil_div(width, step)
    split_width = step * ceil_div(steps, _splits(tokens, tiles * max(1, ceil_div(m, rows)), steps))
    return SteerTiling(
        tokens=tokens,
        shrink_rows=rows,
        shrink_step=step,
        splits=ceil_div(width, split_width),
        split_width=split_width,
        expand_rows=min(256, max(MIN_DOT, power_of_two(m))) if tokens == 1 else 32,
        expand_width=expand_width(tiles, out_width),
        warps=8 if tokens == 64 or (tokens == 32 and rows == 64) else 4,
    )


def _tokens(n: int) -> int:
    if n <= 4:
        return 1
    return 16 if n <= 64 else 32 if n <= 1024 else 64


def _shrink_rows(tokens: int, m: int) -> int:
    if tokens == 1:
        return 8 if m <= 128 else 16
    if m <= 16:
        return MIN_DOT
    return 32 if tokens == 16 or (tokens == 32 and m <= 64) else 64


def _splits(tokens: int, programs: int, steps: int) -> int:
    """Enough to fill the chip; few tokens always split, since the expand kernel of the other form walks over rows."""
    least = 2 if tokens <= 16 else 1
    return min(MAX_SPLITS[tokens], power_of_two(min(max(least, ceil_div(PROGRAMS, programs)), steps)))


def expand_width(tiles: int, out_width: int) -> int:
    """The widest block that still gives every multiprocessor a program."""
    for block in (64, 32):
        if tiles * ceil_div(out_width, block) * 2 >= PROGRAMS:
            return block
    return MIN_DOT


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
