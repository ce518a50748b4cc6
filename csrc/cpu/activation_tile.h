// The activations of M rows on one tile of tokens: read, encode, activate.
#pragma once

#include "packed_dots.h"
#include "row_rules.h"
#include "shares.h"
#include "token_rows.h"
#include "token_scales.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kMostTokens = 132;  // of a tile
constexpr int64_t kPackedRows = 32;   // from so many rows on packing the tokens pays

template <typename T, typename R, typename C>
class ActivationTile {
 public:
  static int64_t padded(int64_t tokens) { return (tokens + kLanes<C> - 1) / kLanes<C> * kLanes<C>; }

  // Bytes that a tile of so many tokens needs, and those that every thread at work on it needs for itself.
  static size_t shared_bytes(const SteerArgs& a, int64_t tokens) {
    return room<C>(padded(tokens) * a.m) + 3 * room<C>(padded(tokens));
  }
  static size_t own_bytes(const SteerArgs& a, int64_t tokens) {
    return room<C>(reads_scratch(a) ? tokens * a.d : 0) + room<C*>(tokens) + packed_bytes(a, tokens);
  }

  // tokens: the numbers of the tile's tokens, all of strength other than 0. Every thread has a tile, with `own` for
  // itself alone: what another core has just written is slow to read.
  ActivationTile(const SteerArgs& args, const int32_t* tokens, int64_t n, char* shared, char* own)
      : a(args), tokens(tokens), n(n), stride(padded(n)) {
    const auto take = [&shared](int64_t count) {
      C* p = reinterpret_cast<C*>(shared);
      shared += room<C>(count);
      return p;
    };
    delta = take(stride * a.m), scale_in = take(stride), scale_out = take(stride), strength = take(stride);
    x = reinterpret_cast<const C**>(own), packed = own + room<C*>(n);
    copies = reinterpret_cast<C*>(packed + packed_bytes(a, n));
  }

  // All tokens in the compute type.
  void read() {
    for (int64_t t = 0; t < n; ++t) {
      const T* source = static_cast<const T*>(a.x) + tokens[t] * a.x_stride;
      if (reads_scratch(a)) {
        const T* residual = a.residual ? static_cast<const T*>(a.residual) + tokens[t] * a.residual_stride : nullptr;
        widen(source, residual, a.d, copies + t * a.d);
        x[t] = copies + t * a.d;
      } else {
        x[t] = reinterpret_cast<const C*>(source);
      }
    }
  }

  // The strengths and scales of tokens [t0, t1), for all threads; tokens need to be read only if reads_norms().
  void weigh(int64_t t0, int64_t t1) {
    const C* per_token = static_cast<const C*>(a.token_strength);
    for (int64_t t = t0; t < t1; ++t) {
      strength[t] = C(a.strength) * (per_token ? per_token[tokens[t]] : C(1));
      scale_in[t] = scale_out[t] = 1;
      if (reads_norms(a)) token_scales(x[t], a, scale_in[t], scale_out[t]);
    }
  }

  // delta[j][t], here the activations of rows [j0, j1), for all tokens.
  void find_activations(int64_t j0, int64_t j1) {
    int64_t j = j0;
    if (a.activations) {
      const C* given = static_cast<const C*>(a.activations) + (tokens - a.tokens) * a.m;
      for (; j < j1; ++j)
        for (int64_t t = 0; t < n; ++t) delta[j * stride + t] = given[t * a.m + j];
      return;
    }
    n < kPackedTokens || j1 - j0 < kPackedRows ? encode(j0, j1) : encode_packed(j0, j1);
    for (j = j0; j < j1; ++j) activate_products(table_row(j), scale_in, n, delta + j * stride);
  }

  // To f [a.n, a.m], where they were found.
  void put_activations(int64_t j0, int64_t j1, C* f) const {
    C* mine = f + (tokens - a.tokens) * a.m;
    for (int64_t t = 0; t < n; ++t)
      for (int64_t j = j0; j < j1; ++j) mine[t * a.m + j] = delta[j * stride + t];
  }

 protected:
  const C* table_row(int64_t j) const { return static_cast<const C*>(a.rows) + j * N_COLUMNS; }

  int64_t bank_row(int64_t j) const { return a.entry_row ? a.entry_row[j] : j; }

  const SteerArgs& a;
  const int32_t* tokens;
  int64_t n, stride;
  C *delta, *scale_in, *scale_out, *strength;

 private:
  static bool reads_scratch(const SteerArgs& a) { return sizeof(T) != sizeof(C) || a.residual; }

  // Rows [j0, j1) for few tokens.
  void encode(int64_t j0, int64_t j1) {
    const auto block = [&](int64_t t, int64_t j, auto tokens, auto size) {
      const R* rows[size];
      for (int i = 0; i < size; ++i) rows[i] = encoder_row(j + i);
      dot_block<C, size, tokens>(x + t, rows, a.d, delta + j * stride + t, stride, 1);
    };
    constexpr auto one = std::integral_constant<int, 1>();
    if (n == 1)
      return each_group<kRowGroupOneToken>(j1 - j0, [&](int64_t j, auto size) { block(0, j0 + j, one, size); });
    each_group<kRowGroup>(j1 - j0, [&](int64_t j, auto size) {
      each_group<kTokenGroup>(n, [&](int64_t t, auto tokens) { block(t, j0 + j, tokens, size); });
    });
  }

  void encode_packed(int64_t j0, int64_t j1) {
    PackedTokens<C, C, R> tokens(x, n, a.d, packed);
    const R* rows[kTileFeatures];
    for (int64_t j = j0; j < j1; j += kTileFeatures) {
      const int64_t count = std::min(kTileFeatures, j1 - j);
      for (int64_t i = 0; i < count; ++i) rows[i] = encoder_row(j + i);
      tokens.dots(rows, count, delta + j * stride, stride, 1);
    }
  }

  const R* encoder_row(int64_t j) const { return static_cast<const R*>(a.encoder) + bank_row(j) * a.d; }

  static size_t packed_bytes(const SteerArgs& a, int64_t tokens) {
    return tokens < kPackedTokens || a.m < kPackedRows ? 0 : PackedTokens<C, C, R>::bytes(tokens, a.d);
  }

  C* copies;
  char* packed;
  const C** x;
};

}  // namespace sparsesteer::SPARSESTEER_ISA
