// Products of a token with the int8 copy of encoder rows.
#pragma once

#include "encode_args.h"
#include "encoder_stream.h"

namespace sparsesteer::SPARSESTEER_ISA {

// One row's products, not yet summed over the lanes. A row at a time: memory is read in one stream.
SPARSESTEER_INLINE Vec<float> screened_row(const float* x, const int8_t* codes, const float* scale, int64_t d) {
  constexpr int vectors = kScreenGroup / kLanes<float>, chains = 8;  // sums that do not wait for each other
  Vec<float> total = {};
  int64_t k = 0;
  for (; k + kScreenGroup <= d; k += kScreenGroup) {
    Vec<float> partial[chains] = {};
    for (int v = 0; v < vectors; ++v)
      partial[v % chains] += load(codes + k + v * kLanes<float>) * load(x + k + v * kLanes<float>);
    for (int half = chains / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) partial[i] += partial[i + half];
    total += partial[0] * scale[k / kScreenGroup];
  }
  Vec<float> rest = {};
  each_vector<float>(d - k, [&](int64_t c, int64_t count) {
    rest += part<float>(codes + k + c, count) * part<float>(x + k + c, count);
  });
  return k < d ? total + rest * scale[k / kScreenGroup] : total;
}

// products[j] of rows first .. first + count, at most kTileFeatures.
inline void screened_products(const float* x, const ScreenArgs& screen, int64_t first, int64_t count, int64_t d,
                              float* products) {
  const int64_t groups = (d + kScreenGroup - 1) / kScreenGroup;
  Vec<float> totals[kTileFeatures] = {};
  for (int64_t j = 0; j < count; ++j)
    totals[j] = screened_row(x, screen.codes + (first + j) * d, screen.scale + (first + j) * groups, d);
  sums<float, kTileFeatures>(totals, products);
}

}  // namespace sparsesteer::SPARSESTEER_ISA
