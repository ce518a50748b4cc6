// The numbers of sparsesteer/_layout.py: columns of a row table, codes of the scale rules.
#pragma once

namespace sparsesteer {

enum Column { BIAS, THRESHOLD, SLOPE, SHIFT, FLOOR, C0, C1, C2, KNOT, GATE, N_COLUMNS };

enum class InputNorm { NONE, LAYER_NORM, CONSTANT_NORM };

enum class OutputScale { ONE, STD, RMS, NORM, GAP_FILL };

constexpr double LAYER_NORM_EPS = 1e-5;

}  // namespace sparsesteer
