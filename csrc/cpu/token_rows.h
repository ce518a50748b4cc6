// Rows of one token: read into the compute type, written at the length of another.
#pragma once

#include <cmath>

#include "simd.h"

namespace sparsesteer::SPARSESTEER_ISA {

// target = source (+ residual, unless null).
template <typename C, typename T>
void widen(const T* source, const T* residual, int64_t width, C* target) {
  each_vector<C>(width, [&](int64_t k, int64_t count) {
    Vec<C> v = part<C>(source + k, count);
    if (residual) v += part<C>(residual + k, count);
    put<C>(target + k, v, count);
  });
}

// out = y at the length of w; y itself if it has none.
template <typename C, typename T>
void put_at_length_of(const T* w, const C* y, int64_t width, T* out) {
  Vec<C> kept = {}, length = {};
  each_vector<C>(width, [&](int64_t c, int64_t count) {
    kept += part<C>(w + c, count) * part<C>(w + c, count), length += part<C>(y + c, count) * part<C>(y + c, count);
  });
  const C squared = sum<C>(length);
  const C factor = squared > 0 ? std::sqrt(sum<C>(kept)) / std::sqrt(squared) : C(1);
  each_vector<C>(width, [&](int64_t c, int64_t count) { put<C>(out + c, part<C>(y + c, count) * factor, count); });
}

}  // namespace sparsesteer::SPARSESTEER_ISA
