"""The numbers that Python, Triton and C++ must agree on: columns of a row table, codes of the scale rules.

A row of the table [M, 10] holds everything about an edited feature except its encoder and decoder rows:

    z = u * (E . x) + bias                                   u: the input scale of ``InputNorm``
    f = max(slope * z + shift, floor) if z > threshold else 0
    d = c0 + c1 * f + c2 * max(f - knot, 0)                  0 if gate is set and f <= 0

``csrc/ops.h`` and ``kernels/steer.py`` repeat these numbers; ``tests/test_layout.py`` compares them.
"""

from enum import IntEnum


class Column(IntEnum):
    """Columns of a row table."""

    BIAS = 0
    THRESHOLD = 1
    SLOPE = 2
    SHIFT = 3
    FLOOR = 4
    C0 = 5
    C1 = 6
    C2 = 7
    KNOT = 8
    GATE = 9


N_COLUMNS = len(Column)


class InputNorm(IntEnum):
    """Run-time normalisation of the tensor that is encoded.

    LAYER_NORM is (x - mean) / (std + 1e-5) with the unbiased std. Its centring is folded into the encoder
    rows (E - mean(E) sees only the centred part of x), so that one factor per token is left.
    """

    NONE = 0
    LAYER_NORM = 1
    CONSTANT_NORM = 2  # sqrt(D) / ||x||


class OutputScale(IntEnum):
    """The factor r of the edit, one number per token."""

    ONE = 0
    STD = 1  # std(x), unbiased: undoes LAYER_NORM
    RMS = 2  # ||x|| / sqrt(D): undoes CONSTANT_NORM
    NORM = 3  # ||x||: directions relative to the stream
    GAP_FILL = 4  # gap / sum_j d_j, 0 where that sum is 0


LAYER_NORM_EPS = 1e-5
