// Sums of decoder rows for many tokens that take most of them: a band of rows, a panel of columns wide, is copied to
// where the first-level cache holds it while all tokens pass. A column of a token is added up row after row, as
// sum_block does.
#pragma once

#include <algorithm>
#include <cstring>

#include "steer_blocks.h"

namespace sparsesteer::SPARSESTEER_ISA {

// sums[t][v] of up to Tokens tokens, for one panel of columns.
template <typename C, int Tokens>
class DenseSums {
 public:
  static constexpr int64_t kColumns = kColumnGroup * kLanes<C>;
  using Sums = Vec<C>[kColumnGroup];

  Sums* sums() { return total; }

  // row_of(j): the panel's columns of row j of m; amounts: [m, stride], those of the tokens side by side.
  template <typename RowOf>
  void add(int64_t n, int64_t m, RowOf&& row_of, const C* amounts, int64_t stride) {
    for (int64_t first = 0; first < m; first += kBandRows) {
      const int64_t rows = std::min(kBandRows, m - first);
      for (int64_t j = 0; j < rows; ++j) {
        const auto* row = row_of(first + j);
        for (int v = 0; v < kColumnGroup; ++v) band[j][v] = load(row + v * kLanes<C>);
      }
      each_group<kTokenGroup>(
          n, [&](int64_t t, auto size) { add_band<size>(total + t, rows, amounts + first * stride + t, stride); });
    }
  }

 private:
  static constexpr int64_t kBandBytes = 12 << 10;
  static constexpr int64_t kBandRows = kBandBytes / sizeof(Sums);

  template <int TG>
  SPARSESTEER_INLINE void add_band(Sums* sums, int64_t rows, const C* amount, int64_t stride) const {
    Vec<C> y[TG][kColumnGroup];  // copied number by number: a block copy would keep it out of the registers
    for (int t = 0; t < TG; ++t)
      for (int v = 0; v < kColumnGroup; ++v) y[t][v] = sums[t][v];
#pragma GCC unroll 4
    for (int64_t j = 0; j < rows; ++j, amount += stride)
      for (int v = 0; v < kColumnGroup; ++v)
        for (int t = 0; t < TG; ++t) y[t][v] += band[j][v] * amount[t];
    for (int t = 0; t < TG; ++t)
      for (int v = 0; v < kColumnGroup; ++v) sums[t][v] = y[t][v];
  }

  Sums total[Tokens], band[kBandRows];
};

}  // namespace sparsesteer::SPARSESTEER_ISA
