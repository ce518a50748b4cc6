// What the decoders of an instruction set take.
#pragma once

#include "codes.h"

namespace sparsesteer {

// The codes of a token; where they are many, by rising index and no index twice.
template <typename C>
struct CodeSpan {
  const Code<C>* begin;
  const Code<C>* end;

  int64_t size() const { return end - begin; }
};

// So many that the rows of several tokens are worth sharing.
inline bool are_many(int64_t codes, int64_t f) { return 32 * codes >= f; }

template <typename C>
struct DecodeArgs {
  const CodeSpan<C>* codes;  // [n], indices below f
  const void* decoder;       // [f, d_out], contiguous
  const C* bias;             // [d_out]
  C* out;                    // [n, d_out], contiguous
  int64_t n, f, d_out;
  Scalar row_type;  // of decoder
};

#define SPARSESTEER_DECLARE_DECODE                         \
  void decode(const DecodeArgs<float>& args, int threads); \
  void decode(const DecodeArgs<double>& args, int threads);

namespace portable {
SPARSESTEER_DECLARE_DECODE
}
namespace avx2 {
SPARSESTEER_DECLARE_DECODE
}
namespace avx512 {
SPARSESTEER_DECLARE_DECODE
}
namespace avx512_bf16 {
SPARSESTEER_DECLARE_DECODE
}
#undef SPARSESTEER_DECLARE_DECODE

}  // namespace sparsesteer
