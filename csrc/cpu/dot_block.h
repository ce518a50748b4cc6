// Dot products of a block of tokens with a block of encoder rows. Every sum is added up in an order that depends on
// its own row and token alone, never on the block, the batch or the threads: the lanes of a vector run over the
// columns, then lane i is added to lane i + half until one is left (`sum` of simd.h).
#pragma once

#include "simd.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int kTokenGroup = SPARSESTEER_VECTOR_BYTES == 64 ? 6 : 2;  // accumulators of a block fit the registers
constexpr int kRowGroup = 4;
constexpr int kRowGroupOneToken = 8;

// Of every run of Width lanes the first half (or the second): those of a, then those of b.
template <typename C, int Width, bool Second, size_t... Lane>
SPARSESTEER_INLINE Vec<C> half_runs(Vec<C> a, Vec<C> b, std::index_sequence<Lane...>) {
  constexpr int half = Width / 2;
  return __builtin_shufflevector(a, b, int(Lane / half * Width + Lane % half + (Second ? half : 0))...);
}

// Lane i becomes the sum of all lanes of v[i], for N vectors, N a power of two up to kLanes: one tree for all of them.
template <typename C, int N, int Width = kLanes<C>>
SPARSESTEER_INLINE Vec<C> tree_of_sums(const Vec<C>* v) {
  if constexpr (Width == 1) {
    return v[0];
  } else {
    const auto all = std::make_index_sequence<kLanes<C>>();
    constexpr int pairs = (N + 1) / 2;
    Vec<C> folded[pairs];
    for (int i = 0; i < pairs; ++i) {
      const Vec<C> a = v[2 * i], b = v[N == 1 ? 0 : 2 * i + 1];
      folded[i] = half_runs<C, Width, false>(a, b, all) + half_runs<C, Width, true>(a, b, all);
    }
    return tree_of_sums<C, pairs, Width / 2>(folded);
  }
}

constexpr int power_of_two_within(int n) { return n < 2 ? 1 : 2 * power_of_two_within(n / 2); }

// out[i] = the sum of all lanes of v[i].
template <typename C, int N>
SPARSESTEER_INLINE void sums(const Vec<C>* v, C* out) {
  constexpr int now = power_of_two_within(N < kLanes<C> ? N : int(kLanes<C>));
  const Vec<C> totals = tree_of_sums<C, now>(v);
  std::memcpy(out, &totals, now * sizeof(C));
  if constexpr (N > now) sums<C, N - now>(v + now, out + now);
}

// z[j * row_stride + t * token_stride] = x[t] . rows[j] for JR rows and TG tokens.
template <typename C, typename R, int JR, int TG>
SPARSESTEER_INLINE void dot_block(const C* const* x, const R* const* rows, int64_t d, C* z, int64_t row_stride,
                                  int64_t token_stride) {
  Vec<C> total[TG][JR] = {};
  const auto add = [&](const Vec<C>(&token)[TG], int j, Vec<C> row) {
    for (int t = 0; t < TG; ++t) total[t][j] += row * token[t];
  };
  Vec<C> token[TG];
  int64_t k = 0;
  for (; k + kLanes<C> <= d; k += kLanes<C>) {
    for (int t = 0; t < TG; ++t) token[t] = load(x[t] + k);
    for (int j = 0; j < JR; ++j) add(token, j, load(rows[j] + k));
  }
  if (k < d) {
    for (int t = 0; t < TG; ++t) token[t] = load_part<C>(x[t] + k, d - k);
    for (int j = 0; j < JR; ++j) add(token, j, load_part<C>(rows[j] + k, d - k));
  }
  C products[TG * JR];
  sums<C, TG * JR>(&total[0][0], products);
  for (int t = 0; t < TG; ++t)
    for (int j = 0; j < JR; ++j) z[j * row_stride + t * token_stride] = products[t * JR + j];
}

}  // namespace sparsesteer::SPARSESTEER_ISA
