// Pre-activations of a panel of tokens, one tile of features after the other: nothing of size tokens x features.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "codes.h"
#include "packed_dots.h"
#include "shares.h"
#include "token_rows.h"
#include "token_scales.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kPanelTokens = 264;  // of one thread: a tile of features in L1 serves so many

// True if bf16 tokens are multiplied with rows of type R as they are.
#ifdef SPARSESTEER_BF16_PAIRS
template <typename R>
constexpr bool kMultipliesPairs = std::is_same_v<R, BFloat16>;
#else
template <typename R>
constexpr bool kMultipliesPairs = false;
#endif

// Tokens in the compute type, with their input scales.
template <typename C>
class Panel {
 public:
  Panel(const EncodeArgs& args, int64_t first, int64_t n) : n(n), x(n), scale(n), a(args), first(first) {
    if (!in_place()) copies.resize(n * a.d);
    if (!a.residual && a.tensor_type == Scalar::BFLOAT16) bf16.resize(n);
  }

  // Tokens [t0, t1) of the panel.
  void read(int64_t t0, int64_t t1) {
    if constexpr (sizeof(C) == sizeof(float)) {
      if (a.tensor_type == Scalar::BFLOAT16) return read_as<BFloat16>(t0, t1);
      if (a.tensor_type == Scalar::HALF) return read_as<Half>(t0, t1);
    }
    read_as<C>(t0, t1);
  }

  int64_t token(int64_t t) const { return a.tokens ? a.tokens[first + t] : first + t; }

  // go(pointers to the tokens) in the type in which they are multiplied with rows of type R.
  template <typename R, typename Go>
  void with_tokens_for(Go&& go) const {
    if constexpr (kMultipliesPairs<R>)
      if (!bf16.empty()) return go(bf16.data());
    go(x.data());
  }

  const int64_t n;
  std::vector<const C*> x;
  std::vector<C> scale;

 private:
  bool in_place() const { return !a.residual && a.tensor_type != Scalar::BFLOAT16 && a.tensor_type != Scalar::HALF; }

  template <typename T>
  void read_as(int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; ++t) {
      const T* source = static_cast<const T*>(a.x) + token(t) * a.x_stride;
      if (in_place()) {
        x[t] = reinterpret_cast<const C*>(source);
      } else {
        const T* added = a.residual ? static_cast<const T*>(a.residual) + token(t) * a.residual_stride : nullptr;
        widen(source, added, a.d, copies.data() + t * a.d);
        x[t] = copies.data() + t * a.d;
        if constexpr (std::is_same_v<T, BFloat16>)
          if (!added) bf16[t] = source;
      }
      scale[t] = input_scale(x[t], a.d, InputNorm(a.input_norm));
    }
  }

  const EncodeArgs& a;
  int64_t first;
  std::vector<C> copies;
  std::vector<const BFloat16*> bf16;  // the tokens themselves, where they are bf16 and nothing is added
};

// z[t][j] = x[t] . row j for n tokens, few of them, and the `count` rows of a tile.
template <typename C, typename X, typename R>
void dot_tile(const X* const* x, int64_t n, const R* const* rows, int64_t count, int64_t d, C* z) {
  const auto block = [&](int64_t t, int64_t j, auto tokens, auto size) {
    dot_block<C, size, tokens>(x + t, rows + j, d, z + t * kTileFeatures + j, 1, kTileFeatures);
  };
  constexpr auto one = std::integral_constant<int, 1>();
  if (n == 1) return each_group<kRowGroupOneToken>(count, [&](int64_t j, auto size) { block(0, j, one, size); });
  each_group<kTokenGroup>(n, [&](int64_t t, auto tokens) {
    each_group<kRowGroup>(count, [&](int64_t j, auto size) { block(t, j, tokens, size); });
  });
}

// go(R()) for the type R of encoder rows.
template <typename C, typename Go>
void with_encoder_type(const EncodeArgs& a, Go&& go) {
  if constexpr (sizeof(C) == sizeof(float))
    if (a.row_type == Scalar::BFLOAT16) return go(BFloat16());
  go(C());
}

// visit(j, count, z) for features [begin, end), tile after tile: z[t][0 .. count) of features j .. j + count.
// features: their numbers, or null for the features themselves.
template <typename R, typename C, typename Visit>
void stream(const Panel<C>& panel, const EncodeArgs& a, const int64_t* features, int64_t begin, int64_t end,
            Visit&& visit) {
  std::vector<C> z(panel.n * kTileFeatures);
  const R* rows[kTileFeatures];
  const auto each_tile = [&](auto&& multiply) {
    for (int64_t j = begin; j < end; j += kTileFeatures) {
      const int64_t count = std::min(kTileFeatures, end - j);
      for (int64_t i = 0; i < count; ++i)
        rows[i] = static_cast<const R*>(a.encoder) + (features ? features[j + i] : j + i) * a.d;
      multiply(count);
      visit(j, count, z.data());
    }
  };
  panel.template with_tokens_for<R>([&]<typename X>(const X* const* x) {
    if (panel.n < kPackedTokens)
      return each_tile([&](int64_t count) { dot_tile(x, panel.n, rows, count, a.d, z.data()); });
    using Packed = PackedTokens<C, X, R>;
    Packed packed(x, panel.n, a.d, scratch(Packed::bytes(panel.n, a.d)));
    each_tile([&](int64_t count) { packed.dots(rows, count, z.data(), 1, kTileFeatures); });
  });
}

}  // namespace sparsesteer::SPARSESTEER_ISA
