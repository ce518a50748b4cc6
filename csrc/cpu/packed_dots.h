// Dot products of many tokens with a tile of encoder rows. Both are copied to where the loop reads them one vector
// after the other, and a chunk of columns of the tile stays in the first-level cache while all tokens pass. The sums
// are those of dot_block, to the bit.
#pragma once

#include <algorithm>
#include <cstddef>

#include "dot_block.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kPackedTokens = 16;  // from so many tokens on the copies pay
constexpr int64_t kTileFeatures = 16;
constexpr int64_t kChunkBytes = 24 << 10;  // of a tile's rows

// go(first, size) for groups that cover [0, n), as large as fit.
template <int Most, typename Go>
SPARSESTEER_INLINE void each_group(int64_t n, Go&& go) {
  int64_t i = 0;
  const auto groups_of = [&](auto size) {
    for (; i + size <= n; i += size) go(i, size);
  };
  groups_of(std::integral_constant<int, Most>());
  if constexpr (Most > 4) groups_of(std::integral_constant<int, 4>());
  if constexpr (Most > 2) groups_of(std::integral_constant<int, 2>());
  groups_of(std::integral_constant<int, 1>());
}

// Tokens of type X, packed once, for tiles of rows of type R, d columns each.
template <typename C, typename X, typename R>
class PackedTokens {
  using Sum = Step<C, X, R>;
  using Columns = typename Sum::Columns;

 public:
  static size_t bytes(int64_t n, int64_t d) {
    return (n * steps_of(d) + kTileFeatures * kChunk) * sizeof(Columns) + n * kTileFeatures * sizeof(Vec<C>);
  }

  // memory: bytes(n, d) from the start of a cache line on.
  PackedTokens(const X* const* x, int64_t n, int64_t d, char* memory) : n(n), d(d), steps(steps_of(d)) {
    tokens = reinterpret_cast<Columns*>(memory);
    chunk = tokens + n * steps;
    totals = reinterpret_cast<Vec<C>*>(chunk + kTileFeatures * kChunk);
    each_group<kTokenGroup>(n, [&](int64_t t, auto size) { pack<size>(x + t, 0, steps, tokens + t * steps); });
  }

  // z[j * row_stride + t * token_stride] = x[t] . rows[j], for count <= kTileFeatures rows.
  void dots(const R* const* rows, int64_t count, C* z, int64_t row_stride, int64_t token_stride) {
    const int64_t chunks = std::max<int64_t>(1, (steps + kChunk - 1) / kChunk), most = (steps + chunks - 1) / chunks;
    int64_t first = 0;
    do {
      const int64_t here = std::min(most, steps - first);
      each_group<kRowGroup>(count, [&](int64_t j, auto size) { pack<size>(rows + j, first, here, chunk + j * here); });
      each_group<kTokenGroup>(n, [&](int64_t t, auto group) {
        each_group<kRowGroup>(count, [&](int64_t j, auto size) {
          add<group, size>(tokens + t * steps + first * group, chunk + j * here, here, first == 0, block(t, j, group));
        });
      });
      first += here;
    } while (first < steps);
    each_group<kTokenGroup>(n, [&](int64_t t, auto group) {
      each_group<kRowGroup>(count, [&](int64_t j, auto size) {
        put<group, size>(block(t, j, group), z + j * row_stride + t * token_stride, row_stride, token_stride);
      });
    });
  }

 private:
  static constexpr int64_t kChunk = kChunkBytes / (kTileFeatures * sizeof(Columns));  // steps

  static int64_t steps_of(int64_t d) { return (d + Sum::kColumns - 1) / Sum::kColumns; }

  Vec<C>* block(int64_t t, int64_t j, int64_t group) const { return totals + t * kTileFeatures + j * group; }

  // Steps [first, first + count) of Size rows or tokens, those of one step side by side.
  template <int Size, typename S>
  void pack(const S* const* rows, int64_t first, int64_t count, Columns* to) const {
    for (int i = 0; i < Size; ++i) {
      const S* row = rows[i] + first * Sum::kColumns;
      const int64_t columns = std::min(count * Sum::kColumns, d - first * Sum::kColumns);
      Columns* packed = to + i;
      int64_t c = 0;
      for (; c + Sum::kColumns <= columns; c += Sum::kColumns, packed += Size) *packed = Sum::read(row + c);
      if (c < columns) *packed = Sum::read_part(row + c, columns - c);
    }
  }

  template <int TG, int JR>
  static void add(const Columns* x, const Columns* row, int64_t count, bool first, Vec<C>* sums) {
    Vec<C> total[TG][JR];  // copied number by number: a block copy would keep it out of the registers
    for (int t = 0; t < TG; ++t)
      for (int j = 0; j < JR; ++j) total[t][j] = first ? Vec<C>{} : sums[t * JR + j];
#pragma GCC unroll 4
    for (int64_t s = 0; s < count; ++s, x += TG, row += JR) {
      Columns token[TG];
      for (int t = 0; t < TG; ++t) token[t] = x[t];
      for (int j = 0; j < JR; ++j) {
        const Columns columns = row[j];
        for (int t = 0; t < TG; ++t) total[t][j] = Sum::add(total[t][j], token[t], columns);
      }
    }
    for (int t = 0; t < TG; ++t)
      for (int j = 0; j < JR; ++j) sums[t * JR + j] = total[t][j];
  }

  template <int TG, int JR>
  static void put(const Vec<C>* totals, C* z, int64_t row_stride, int64_t token_stride) {
    C products[TG * JR];
    sums<C, TG * JR>(totals, products);
    for (int t = 0; t < TG; ++t)
      for (int j = 0; j < JR; ++j) z[j * row_stride + t * token_stride] = products[t * JR + j];
  }

  int64_t n, d, steps;
  Columns *tokens, *chunk;  // [n, steps]; [kTileFeatures, kChunk]
  Vec<C>* totals;           // [n, kTileFeatures]
};

}  // namespace sparsesteer::SPARSESTEER_ISA
