// From pre-activations to candidates: one pass over a tile of features, vectors of features for each token.
#pragma once

#include "encoder_stream.h"
#include "row_rules.h"
#include "select.h"

namespace sparsesteer::SPARSESTEER_ISA {

SPARSESTEER_INLINE uint32_t lanes_below(int64_t count) { return count < 32 ? (1u << count) - 1 : ~0u; }

// Columns BIAS to FLOOR of the row table, of one tile of features.
template <typename C>
class TileRows {
 public:
  TileRows(const EncodeArgs& a, int64_t first, int64_t count, int columns) {
    const C* row = static_cast<const C*>(a.rows) + first * a.row_stride;
    for (int64_t j = 0; j < count; ++j, row += a.row_stride)
      for (int c = 0; c < columns; ++c) column[c][j] = row[c];
  }

  Vec<C> z(Vec<C> product, C scale, int64_t j) const { return pre_activation(product, scale, load(column[BIAS] + j)); }

  // Lanes whose f is 0 for this z and every lower one. A NaN says nothing about lower ones.
  auto inactive_up_to(Vec<C> z, int64_t j) const {
    return (f(z, j) == C(0)) & (z == z) & (load(column[SLOPE] + j) >= C(0)) & (load(column[FLOOR] + j) >= C(0));
  }

  Vec<C> f(Vec<C> z, int64_t j) const {
    const Vec<C> magnitude = load(column[SLOPE] + j) * z + load(column[SHIFT] + j), floor = load(column[FLOOR] + j);
    return z > load(column[THRESHOLD] + j) ? (magnitude > floor ? magnitude : floor) : Vec<C>{};
  }

 private:
  C column[FLOOR + 1][kTileFeatures] = {};
};

// Features [first, first + count) of all tokens of a panel. With k the candidates are the largest z, otherwise the
// largest f that are not 0.
template <typename C>
void sift(const Panel<C>& panel, const EncodeArgs& a, int64_t first, int64_t count, const C* products,
          std::vector<Best<C>>& best) {
  const TileRows<C> rows(a, first, count, a.k > 0 ? BIAS + 1 : FLOOR + 1);
  for (int64_t t = 0; t < panel.n; ++t) {
    Best<C>& mine = best[t];
    for (int64_t j = 0; j < count; j += kLanes<C>) {
      const uint32_t within = lanes_below(count - j);
      Vec<C> value = rows.z(load(products + t * kTileFeatures + j), panel.scale[t], j);
      uint32_t found;
      if (a.k > 0) {
        found = bits_of<C>(value > mine.bar) & within;
      } else {
        value = rows.f(value, j);
        const uint32_t active = bits_of<C>(value != C(0)) & within;
        mine.count += __builtin_popcount(active);
        found = active & bits_of<C>(value > mine.bar);
      }
      if (found != 0) mine.push(value, found, int32_t(first + j));
    }
  }
}

// The listed features of one token.
template <typename C>
void sift_token(const EncodeArgs& a, const int64_t* features, int64_t count, const C* products, C scale,
                Best<C>& best) {
  for (int64_t j = 0; j < count; ++j) {
    const C* row = static_cast<const C*>(a.rows) + features[j] * a.row_stride;
    const C z = pre_activation(products[j], scale, row[BIAS]);
    const C value = a.k > 0 ? z : activate(row, z);
    if (a.k == 0) best.count += value != 0;
    if (value > best.bar && (a.k > 0 || value != 0)) best.push(Vec<C>{value}, 1, int32_t(features[j]));
  }
}

}  // namespace sparsesteer::SPARSESTEER_ISA
