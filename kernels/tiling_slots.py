"""Block sizes of ``steer_slots``: plain functions of the shape, the same for every mixture of slots."""

from typing import NamedTuple

from sparsesteer.kernels.tiling import MAX_REGISTERS, PROGRAMS, ceil_div, expand_width

FEW_TOKENS = 64  # up to here every token is a tile of its own: in decoding each belongs to another request
MAX_SPLITS = 32
SCRATCH = 1 << 24  # numbers between shrink and expand, 64 MB


class SlotsTiling(NamedTuple):
    """How ``steer_slots`` is cut into programs.

    With ``splits`` > 1 a shrink program leaves products of a part of the width, else finished edits.
    """

    tokens: int  # tokens of a program; 1 multiplies without tensor cores
    shrink_rows: int
    shrink_step: int  # columns read at a time
    row_groups: int  # programs that share the entries of a slot, whose number only the device knows
    splits: int
    split_width: int  # columns of a split, a multiple of shrink_step
    expand_rows: int  # rows read at a time
    expand_width: int
    chunk: int  # tokens of a launch
    warps: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        return {"num_warps": self.warps, "maxnreg": MAX_REGISTERS}


def slots_tiling(n: int, entries: int, width: int, out_width: int) -> SlotsTiling:
    """The tiling for N tokens, P entries of all slots and the widths read and written."""
    few = n <= FEW_TOKENS
    tokens = 1 if few else 16 if n <= 2048 else 32
    step = 32 if not few else 128 if n <= 4 else 256
    groups = 8 if few else 2
    tiles = max(1, ceil_div(n, tokens))
    steps = ceil_div(width, step)
    split_width = step * ceil_div(steps, min(MAX_SPLITS, steps, ceil_div(PROGRAMS, tiles * groups)))
    splits = ceil_div(width, split_width)
    return SlotsTiling(
        tokens=tokens,
        shrink_rows={1: 8, 16: 32, 32: 64}[tokens],
        shrink_step=step,
        row_groups=groups,
        splits=splits,
        split_width=split_width,
        expand_rows=64 if few else 32,
        expand_width=expand_width(tiles, out_width),
        chunk=tokens * max(1, SCRATCH // max(1, splits * entries * tokens)),
        warps=8 if tokens == 32 else 4,
    )
