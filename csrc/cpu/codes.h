// Codes: the active features of every token. What an encoder of an instruction set takes and gives.
#pragma once

#include <cstdint>
#include <vector>

#include "../layout.h"
#include "steer_args.h"

namespace sparsesteer {

// Raw pointers, strides in elements.
struct EncodeArgs {
  const void* x;                   // [*, d]
  const void* residual = nullptr;  // [*, d], added to x, or null
  int64_t x_stride, residual_stride = 0;
  const int32_t* tokens = nullptr;  // [n] the rows of x to encode; null for the first n
  const void* encoder;              // [f, d], contiguous
  const void* rows;                 // [f, row_stride] in the compute type; BIAS to FLOOR are read
  int64_t row_stride = N_COLUMNS;
  int64_t n, d, f;
  int64_t k;  // only the k largest z of a token stay; 0 for all
  int input_norm;
  Scalar tensor_type, row_type;  // of x and residual; of encoder
};

template <typename C>
struct Code {
  C value;  // never 0
  int32_t index;
};

// Of every token, by rising index.
template <typename C>
using Codes = std::vector<std::vector<Code<C>>>;

// All active features of args.n tokens; the type of `codes` is the compute type. Memory: 8 or 16 bytes a code, so
// that a caller who expects many gives some tokens at a time. Opens its own parallel region.
#define SPARSESTEER_DECLARE_CODES                                              \
  void encode_codes(const EncodeArgs& args, int threads, Codes<float>& codes); \
  void encode_codes(const EncodeArgs& args, int threads, Codes<double>& codes);

namespace portable {
SPARSESTEER_DECLARE_CODES
}
namespace avx2 {
SPARSESTEER_DECLARE_CODES
}
namespace avx512 {
SPARSESTEER_DECLARE_CODES
}
namespace avx512_bf16 {
SPARSESTEER_DECLARE_CODES
}
#undef SPARSESTEER_DECLARE_CODES

}  // namespace sparsesteer
