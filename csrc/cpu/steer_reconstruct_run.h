// steer_reconstruct: encode, edit the codes, decode, write; some tokens at a time.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "decode_run.h"
#include "reconstruct_args.h"
#include "token_rows.h"
#include "token_scales.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kTokensAtATime = 256;  // of a thread: bounds the memory of codes and sums whatever the batch

template <typename T, typename R, typename C>
class Reconstruct {
 public:
  Reconstruct(const ReconstructArgs& args, int threads)
      : a(args),
        s(args.steer),
        threads(threads),
        tile(std::min(kTokensAtATime * threads, s.n)),
        sums(new C[tile * s.d_out]) {}

  void operator()() {
    for (int64_t first = 0; first < s.n; first += tile) run(first, std::min(tile, s.n - first));
  }

 private:
  void run(int64_t first, int64_t n) {
    tokens = s.tokens + first;
    encode_codes(encode_args(n), threads, codes);
    std::vector<CodeSpan<C>> spans(n);
    const DecodeArgs<C> decode{spans.data(), s.decoder, static_cast<const C*>(s.delta_bias), sums.get(), n, a.f,
                               s.d_out,      s.row_type};
    const bool by_tokens = n >= kTokensPerThread * threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const int parts = omp_get_num_threads(), i = omp_get_thread_num();
      const Range mine = share(n, parts, i, 1);
      for (int64_t t = mine.begin; t < mine.end; ++t) spans[t] = edited(codes[t]);
      if (by_tokens) {
        decode_part<C, R>(decode, mine, {0, s.d_out});
      } else {
#pragma omp barrier
        decode_part<C, R>(decode, {0, n}, share(s.d_out, parts, i, kDecodeColumns));
#pragma omp barrier
      }
      for (int64_t t = mine.begin; t < mine.end; ++t) finish(t);
    }
  }

  EncodeArgs encode_args(int64_t n) const {
    EncodeArgs encode{};
    encode.x = s.x, encode.x_stride = s.x_stride;
    encode.residual = s.residual, encode.residual_stride = s.residual_stride;
    encode.tokens = tokens, encode.n = n, encode.d = s.d;
    encode.encoder = s.encoder, encode.rows = a.table, encode.f = a.f, encode.k = a.k;
    encode.input_norm = s.input_norm, encode.tensor_type = s.tensor_type, encode.row_type = s.row_type;
    return encode;
  }

  // A token's codes after the edits; an edit of a feature that is not active is part of the bias.
  CodeSpan<C> edited(std::vector<Code<C>>& token) const {
    for (Code<C>& code : token) {
      const int64_t j = std::lower_bound(a.features, a.features + s.m, int64_t(code.index)) - a.features;
      if (j < s.m && a.features[j] == code.index) code.value += change(j, code.value) - change(j, C(0));
    }
    return {token.data(), token.data() + token.size()};
  }

  // d_j(f)
  C change(int64_t j, C f) const {
    const C* row = static_cast<const C*>(s.rows) + j * N_COLUMNS;
    const C above = f - row[KNOT];
    const C d = row[C0] + row[C1] * f + row[C2] * (above > 0 ? above : C(0));
    return row[GATE] != 0 && !(f > 0) ? C(0) : d;
  }

  // From the sums of token t to its row of out.
  void finish(int64_t t) {
    C* y = sums.get() + t * s.d_out;
    undo_input_norm(t, y);
    const T* w = static_cast<const T*>(s.into) + tokens[t] * s.into_stride;
    T* out = static_cast<T*>(s.out) + tokens[t] * s.out_stride;
    const C* per_token = static_cast<const C*>(s.token_strength);
    const C strength = C(s.strength) * (per_token ? per_token[tokens[t]] : C(1));
    each_vector<C>(s.d_out, [&](int64_t c, int64_t count) {
      const Vec<C> from = part<C>(w + c, count);
      const Vec<C> result = from + (part<C>(y + c, count) - from) * strength;
      if (s.preserve_norm)
        put<C>(y + c, result, count);
      else
        put<C>(out + c, result, count);
    });
    if (s.preserve_norm) put_at_length_of(w, y, s.d_out, out);
  }

  // y of a normalised x back at the scale (and mean) of x.
  void undo_input_norm(int64_t t, C* y) const {
    if (s.input_norm == int(InputNorm::NONE)) return;
    C* x = reinterpret_cast<C*>(scratch(s.d * sizeof(C)));
    const T* residual = s.residual ? static_cast<const T*>(s.residual) + tokens[t] * s.residual_stride : nullptr;
    widen(static_cast<const T*>(s.x) + tokens[t] * s.x_stride, residual, s.d, x);
    const bool centred = s.input_norm == int(InputNorm::LAYER_NORM);
    const C factor = centred ? standard_deviation(x, s.d) : euclidean_norm(x, s.d) / std::sqrt(C(s.d));
    const C shift = centred ? mean(x, s.d) : C(0);
    each_vector<C>(s.d_out,
                   [&](int64_t c, int64_t count) { put<C>(y + c, part<C>(y + c, count) * factor + shift, count); });
  }

  const ReconstructArgs& a;
  const SteerArgs& s;
  int threads;
  int64_t tile;                     // tokens at a time
  const int32_t* tokens = nullptr;  // those at hand
  Codes<C> codes;
  std::unique_ptr<C[]> sums;  // [tile, d_out]
};

void steer_reconstruct(const ReconstructArgs& args, int threads) {
  with_types(args.steer.tensor_type, args.steer.row_type,
             [&]<typename T, typename R, typename C>() { Reconstruct<T, R, C>(args, threads)(); });
}

}  // namespace sparsesteer::SPARSESTEER_ISA
