// What a row of the table says about a feature (sparsesteer/_layout.py): activations of pre-activations, and edits.
#pragma once

#include "../layout.h"
#include "simd.h"

namespace sparsesteer::SPARSESTEER_ISA {

// z of an encoder product; every op takes it from here, so that all have the same bits.
template <typename V, typename U, typename B>
SPARSESTEER_INLINE V pre_activation(V product, U scale, B bias) {
  return product * scale + bias;
}

template <typename C>
SPARSESTEER_INLINE C activate(const C* row, C z) {
  const C magnitude = row[SLOPE] * z + row[SHIFT];
  return z > row[THRESHOLD] ? (magnitude > row[FLOOR] ? magnitude : row[FLOOR]) : C(0);
}

// Of n tokens: values are encoder products and become activations f.
template <typename C>
SPARSESTEER_INLINE void activate_products(const C* row, const C* scales, int64_t n, C* values) {
  C own[C0];  // a copy, which writing to values cannot change
  std::memcpy(own, row, sizeof own);
  for (int64_t t = 0; t < n; ++t) values[t] = activate(own, pre_activation(values[t], scales[t], own[BIAS]));
}

// Of n tokens: values are activations f and become their changes d.
template <typename C>
SPARSESTEER_INLINE void edit_activations(const C* row, int64_t n, C* values) {
  const C c0 = row[C0], c1 = row[C1], c2 = row[C2], knot = row[KNOT];
  const bool gate = row[GATE] != 0;
  for (int64_t t = 0; t < n; ++t) {
    const C f = values[t], above = f - knot;
    const C d = c0 + c1 * f + c2 * (above > 0 ? above : C(0));
    values[t] = gate && !(f > 0) ? C(0) : d;
  }
}

}  // namespace sparsesteer::SPARSESTEER_ISA
