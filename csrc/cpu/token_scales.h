// The two factors of a token: u on its encoder products, r on its edit (sparsesteer/_layout.py).
#pragma once

#include <cmath>

#include "../layout.h"
#include "simd.h"
#include "steer_args.h"

namespace sparsesteer::SPARSESTEER_ISA {

// True if a token's factors depend on x.
inline bool reads_norms(const SteerArgs& a) {
  return a.input_norm != int(InputNorm::NONE) ||
         (a.scale_rule != int(OutputScale::ONE) && a.scale_rule != int(OutputScale::GAP_FILL));
}

template <typename C>
C mean(const C* x, int64_t d) {
  Vec<C> total = {};
  each_vector<C>(d, [&](int64_t k, int64_t count) { total += part<C>(x + k, count); });
  return sum<C>(total) / C(d);
}

// Unbiased, from centred values in a second pass.
template <typename C>
C standard_deviation(const C* x, int64_t d) {
  const C centre = mean(x, d);
  Vec<C> squares = {};
  each_vector<C>(d, [&](int64_t k, int64_t count) {
    C centred[kLanes<C>];
    store(centred, part<C>(x + k, count) - centre);
    const Vec<C> v = part<C>(centred, count);  // lanes past the end are 0 again
    squares += v * v;
  });
  return std::sqrt(sum<C>(squares) / C(d - 1));
}

template <typename C>
C euclidean_norm(const C* x, int64_t d) {
  Vec<C> squares = {};
  each_vector<C>(d, [&](int64_t k, int64_t count) {
    const Vec<C> v = part<C>(x + k, count);
    squares += v * v;
  });
  return std::sqrt(sum<C>(squares));
}

// The factor u on x's products with encoder rows.
template <typename C>
C input_scale(const C* x, int64_t d, InputNorm rule) {
  if (rule == InputNorm::LAYER_NORM) return 1 / (standard_deviation(x, d) + C(LAYER_NORM_EPS));
  if (rule == InputNorm::NONE) return 1;
  const C norm = euclidean_norm(x, d);
  return norm > 0 ? std::sqrt(C(d)) / norm : C(0);
}

template <typename C>
void token_scales(const C* x, const SteerArgs& a, C& in, C& out) {
  in = out = 1;
  const C root = std::sqrt(C(a.d));
  const bool centred = a.input_norm == int(InputNorm::LAYER_NORM), by_std = a.scale_rule == int(OutputScale::STD);
  const C std = centred || by_std ? standard_deviation(x, a.d) : C(0);
  const C norm = centred && by_std ? C(0) : euclidean_norm(x, a.d);
  if (centred) in = 1 / (std + C(LAYER_NORM_EPS));
  if (a.input_norm == int(InputNorm::CONSTANT_NORM)) in = norm > 0 ? root / norm : C(0);
  if (by_std) out = std;
  if (a.scale_rule == int(OutputScale::RMS)) out = norm / root;
  if (a.scale_rule == int(OutputScale::NORM)) out = norm;
}

}  // namespace sparsesteer::SPARSESTEER_ISA
