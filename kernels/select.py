"""The largest of a set, exactly: numbers packed with their index into one int64 that no two features share.

The order of the packed numbers is that of the values, lower index first among equal ones. A row of the buffer holds
the candidates of a token in any order; what is kept of them depends on their set alone, so that the order in which
programs arrive never shows in a result.
"""

import triton
import triton.language as tl

from sparsesteer.kernels.rules import activate

LOWEST = tl.constexpr(-(2**63))  # nobody's number: an empty place
HIGHEST = tl.constexpr(2**63 - 1)
LOW_BITS = tl.constexpr(0x7FFFFFFF)


@triton.jit
def ordered(value):
    """fp32 as int32 of the same order; -0 and 0 are equal."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & LOW_BITS)


@triton.jit
def pack(key, index):
    """Ordered values and their indices (below 2^31) as int64."""
    return (key.to(tl.int64) << 32) | (index.to(tl.int64) ^ LOW_BITS)


@triton.jit
def reaches(key, index, floor):
    """pack(key, index) >= floor, without the registers of the packed number."""
    lowest_key, last_index = (floor >> 32).to(tl.int32), index_of(floor).to(tl.int32)
    return (key > lowest_key) | ((key == lowest_key) & (index.to(tl.int32) <= last_index))


@triton.jit
def value_of(packed):
    """The fp32 values in packed numbers."""
    key = (packed >> 32).to(tl.int32)
    return (key ^ ((key >> 31) & LOW_BITS)).to(tl.float32, bitcast=True)


@triton.jit
def index_of(packed):
    """The indices (int64) in packed numbers."""
    return (packed & LOW_BITS) ^ LOW_BITS


@triton.jit
def count_reaching(packed_ptr, n, pivot, BLOCK: tl.constexpr):
    """How many of n numbers are not below the pivot."""
    reached = 0
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        packed = tl.load(packed_ptr + at, at < n, other=LOWEST)
        reached += tl.sum((packed >= pivot).to(tl.int32), axis=0)
    return reached


@triton.jit
def reached_by(packed_ptr, n, k, BLOCK: tl.constexpr):
    """A pivot that exactly k of n numbers reach, by bisection; the lowest of all if there are no more than k."""
    low = tl.full([], LOWEST, tl.int64)
    high = tl.full([], HIGHEST, tl.int64)
    reached = n
    while (reached > k) & (low + 1 < high):
        middle = (low & high) + ((low ^ high) >> 1)
        above = count_reaching(packed_ptr, n, middle, BLOCK)
        if above >= k:
            low = middle
            reached = above
        else:
            high = middle
    return low


@triton.jit
def move_to_front(packed_ptr, n, pivot, BLOCK: tl.constexpr):
    """Moves those of n numbers that reach the pivot to the front; returns how many they are."""
    kept = 0
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        packed = tl.load(packed_ptr + at, at < n, other=LOWEST)
        keep = (packed >= pivot) & (packed > LOWEST)
        to = kept + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.debug_barrier()  # every thread has read this block before one writes into it
        tl.store(packed_ptr + to, packed, keep)
        kept += tl.sum(keep.to(tl.int32), axis=0)
    tl.debug_barrier()
    return kept


@triton.jit
def keep_best(packed_ptr, count_ptr, floor_ptr, n_sampled, want, capacity, SAMPLED: tl.constexpr, BLOCK: tl.constexpr):
    """Leaves a token the ``want`` largest of its sample, or raises the floor set by these to that of all candidates."""
    token = tl.program_id(0).to(tl.int64)
    packed_ptr += token * capacity
    if SAMPLED:
        floor = reached_by(packed_ptr, n_sampled, want, BLOCK)
        tl.store(count_ptr + token, move_to_front(packed_ptr, n_sampled, floor, BLOCK))
    else:
        n = tl.minimum(tl.load(count_ptr + token), capacity)
        # with no more than ``want`` candidates these are the sample's, and their floor stands
        floor = tl.maximum(reached_by(packed_ptr, n, want, BLOCK), tl.load(floor_ptr + token))
    tl.store(floor_ptr + token, floor)


@triton.jit
def write_codes(packed, at, width, values_ptr, indices_ptr):
    """Values and indices [at] of one token; 0 and -1 where a place is empty."""
    present = packed > LOWEST
    tl.store(values_ptr + at, tl.where(present, value_of(packed), 0.0), at < width)
    tl.store(indices_ptr + at, tl.where(present, index_of(packed), -1).to(tl.int32), at < width)


@triton.jit
def finish_codes(
    packed_ptr, count_ptr, rows_ptr, values_ptr, indices_ptr, active_ptr, want, width, capacity,
    TOPK: tl.constexpr, SORTED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The codes of a token from its candidates, f of them all; unless SORTED, the packed f are left for a sort.

    With TOPK candidates are pre-activations: the ``want`` largest are activated, and those that are not 0 counted.
    """
    token = tl.program_id(0).to(tl.int64)
    packed_ptr += token * capacity
    found = tl.load(count_ptr + token)
    kept = tl.minimum(found, capacity)
    if kept > want:
        kept = move_to_front(packed_ptr, kept, reached_by(packed_ptr, kept, want, BLOCK), BLOCK)
    active = 0
    for first in range(0, want, WIDE):
        at = first + tl.arange(0, WIDE)
        packed = tl.load(packed_ptr + at, at < kept, other=LOWEST)
        if TOPK:
            rows = index_of(packed)
            f = tl.reshape(activate(value_of(packed)[None, :], rows_ptr, rows, at < kept), [WIDE])
            packed = tl.where((at < kept) & (f != 0), pack(ordered(f), rows), LOWEST)
            active += tl.sum((packed > LOWEST).to(tl.int32), axis=0)
        if SORTED:
            packed = tl.sort(packed, descending=True)
            write_codes(packed, at, width, values_ptr + token * width, indices_ptr + token * width)
        else:
            tl.store(packed_ptr + at, packed, at < want)
    if SORTED:
        for first in range(WIDE, width, WIDE):
            at = first + tl.arange(0, WIDE)
            write_codes(
                tl.full([WIDE], LOWEST, tl.int64), at, width, values_ptr + token * width, indices_ptr + token * width
            )
    tl.store(active_ptr + token, active if TOPK else found)


@triton.jit
def unpack_codes(packed_ptr, values_ptr, indices_ptr, n_packed, width, BLOCK: tl.constexpr):
    """Values and indices from sorted packed f [N, n_packed]."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    packed = tl.load(packed_ptr + token * n_packed + at, at < n_packed, other=LOWEST)
    write_codes(packed, at, width, values_ptr + token * width, indices_ptr + token * width)
