// decode over all tokens: who does what.
#pragma once

#include <omp.h>

#include <vector>

#include "code_sums.h"
#include "types.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kTokensPerThread = 4;  // from so many on a thread decodes whole tokens, below all share each token
constexpr int64_t kDecodeColumns = 64;   // a thread's share of columns is a multiple of this

template <typename C, typename R>
void decode_part(const DecodeArgs<C>& a, Range tokens, Range columns) {
  C* out = a.out + tokens.begin * a.d_out;
  const int64_t n = tokens.end - tokens.begin;
  for (int64_t t = 0; t < n; ++t)
    std::copy(a.bias + columns.begin, a.bias + columns.end, out + t * a.d_out + columns.begin);
  CodeSums<C, R>(a.decoder, a.f, a.d_out, a.codes + tokens.begin, n, out).add(columns);
}

template <typename C, typename R>
void decode_shared(const DecodeArgs<C>& a, int threads) {
  const bool by_tokens = a.n >= kTokensPerThread * threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int parts = omp_get_num_threads(), i = omp_get_thread_num();
    if (by_tokens)
      decode_part<C, R>(a, share(a.n, parts, i, 1), {0, a.d_out});
    else
      decode_part<C, R>(a, {0, a.n}, share(a.d_out, parts, i, kDecodeColumns));
  }
}

void decode(const DecodeArgs<float>& args, int threads) {
  if (args.row_type == Scalar::BFLOAT16)
    decode_shared<float, BFloat16>(args, threads);
  else
    decode_shared<float, float>(args, threads);
}

void decode(const DecodeArgs<double>& args, int threads) { decode_shared<double, double>(args, threads); }

}  // namespace sparsesteer::SPARSESTEER_ISA
