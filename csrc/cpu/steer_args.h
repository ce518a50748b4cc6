// What cpu/steer.cpp hands to the kernel of an instruction set: raw pointers, strides in elements.
#pragma once

#include <cstdint>

namespace sparsesteer {

enum class Scalar { FLOAT, BFLOAT16, HALF, DOUBLE };

// One plan and the tokens that it steers.
struct SteerArgs {
  const int32_t* tokens;  // [n] their rows in the tensors below, each of strength other than 0
  const void* x;          // [*, d]
  const void* residual;   // [*, d] or null
  const void* into;       // [*, d_out]
  void* out;              // [*, d_out], may be into or x
  int64_t x_stride, residual_stride, into_stride, out_stride;
  const void* encoder;         // [m, d], contiguous
  const void* activations;     // [n, m] the rows' activations, which then need no encoder; null: to be computed
  const void* decoder;         // [m, d_out], contiguous
  const int32_t* entry_row;    // [m] the row of encoder and decoder that belongs to each row of `rows`; null: its own
  const void* rows;            // [m, N_COLUMNS] in the compute type
  const void* delta_bias;      // [d_out] in the compute type, or null
  const void* token_strength;  // [*] in the compute type, or null
  double strength, gap;
  int64_t n, d, d_out, m;
  int input_norm, scale_rule;
  bool preserve_norm;
  Scalar tensor_type, row_type;  // of x, into, residual, out; of encoder and decoder
};

// activations: f [n, m] in the compute type, of args.tokens; into, out, decoder and strengths are not read.
#define SPARSESTEER_DECLARE_STEER                                 \
  void steer(const SteerArgs* plans, int64_t count, int threads); \
  void activations(const SteerArgs& args, int threads, void* f);

namespace portable {
SPARSESTEER_DECLARE_STEER
}
namespace avx2 {
SPARSESTEER_DECLARE_STEER
}
namespace avx512 {
SPARSESTEER_DECLARE_STEER
}
namespace avx512_bf16 {
using avx512::activations;  // whose tokens are fp32 when they are multiplied
using avx512::steer;
}  // namespace avx512_bf16
#undef SPARSESTEER_DECLARE_STEER

}  // namespace sparsesteer
