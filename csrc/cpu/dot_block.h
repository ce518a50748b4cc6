// Dot products of a block of tokens with a block of encoder rows. Every sum is added up in an order that depends on
// its own row and token alone, never on the block, the batch or the threads: the lanes of a vector run over the
// columns, then lane i is added to lane i + half until one is left (`sum` of simd.h).
#pragma once

#include "simd.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int kTokenGroup = SPARSESTEER_VECTOR_BYTES == 64 ? 6 : 3;  // accumulators of a block fit the registers
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

// A step of a sum over columns: what is read of a token of type X and of a row of type R, and how it is added.
template <typename C, typename X, typename R>
struct Step {
  using Columns = Vec<C>;
  static constexpr int64_t kColumns = kLanes<C>;

  template <typename S>
  static SPARSESTEER_INLINE Columns read(const S* p) {
    return load(p);
  }
  template <typename S>
  static SPARSESTEER_INLINE Columns read_part(const S* p, int64_t n) {
    return load_part<C>(p, n);
  }
  static SPARSESTEER_INLINE Vec<C> add(Vec<C> total, Columns token, Columns row) { return total + row * token; }
};

#ifdef SPARSESTEER_BF16_PAIRS
// Two columns a lane, products exact, sums in fp32; subnormal numbers count as 0.
template <>
struct Step<float, BFloat16, BFloat16> {
  using Columns = __m512bh;
  static constexpr int64_t kColumns = 2 * kLanes<float>;

  static SPARSESTEER_INLINE Columns read(const BFloat16* p) { return bit_cast<Columns>(_mm512_loadu_si512(p)); }
  static SPARSESTEER_INLINE Columns read_part(const BFloat16* p, int64_t n) {
    return bit_cast<Columns>(_mm512_maskz_loadu_epi16((1u << n) - 1, p));
  }
  static SPARSESTEER_INLINE Vec<float> add(Vec<float> total, Columns token, Columns row) {
    return bit_cast<Vec<float>>(_mm512_dpbf16_ps(bit_cast<__m512>(total), token, row));
  }
};
#endif

// z[j * row_stride + t * token_stride] = x[t] . rows[j] for JR rows and TG tokens.
template <typename C, int JR, int TG, typename X, typename R>
SPARSESTEER_INLINE void dot_block(const X* const* x, const R* const* rows, int64_t d, C* z, int64_t row_stride,
                                  int64_t token_stride) {
  using Step = Step<C, X, R>;
  Vec<C> total[TG][JR] = {};
  typename Step::Columns token[TG];
  const auto add = [&](int j, typename Step::Columns row) {
    for (int t = 0; t < TG; ++t) total[t][j] = Step::add(total[t][j], token[t], row);
  };
  int64_t k = 0;
  for (; k + Step::kColumns <= d; k += Step::kColumns) {
    for (int t = 0; t < TG; ++t) token[t] = Step::read(x[t] + k);
    for (int j = 0; j < JR; ++j) add(j, Step::read(rows[j] + k));
  }
  if (k < d) {
    for (int t = 0; t < TG; ++t) token[t] = Step::read_part(x[t] + k, d - k);
    for (int j = 0; j < JR; ++j) add(j, Step::read_part(rows[j] + k, d - k));
  }
  C products[TG * JR];
  sums<C, TG * JR>(&total[0][0], products);
  for (int t = 0; t < TG; ++t)
    for (int j = 0; j < JR; ++j) z[j * row_stride + t * token_stride] = products[t * JR + j];
}

}  // namespace sparsesteer::SPARSESTEER_ISA
