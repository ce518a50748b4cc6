// What cpu/encode.cpp hands to the kernels of an instruction set beside codes.h.
#pragma once

#include "codes.h"

namespace sparsesteer {

struct EncodeOut {
  void* values;  // [n, width] in the compute type
  int32_t *indices, *counts;
  int64_t width;
};

// The int8 copy of the encoder (sparsesteer/screen.py).
struct ScreenArgs {
  const int8_t* codes;  // [f, d]
  const float* scale;   // [f, ceil(d / kScreenGroup)]
  const float* error;   // [f]
};

constexpr int64_t kScreenGroup = 128;

// Features of a whole SAE whose activations are wanted.
struct EditedRows {
  const int64_t* features;  // [m]
  const void* rows;         // [m, N_COLUMNS] in the compute type; THRESHOLD to FLOOR are read
  int64_t m;
  bool ranked = true;  // under TopK; otherwise a feature is active by its row alone, and args.k is 0
};

#define SPARSESTEER_DECLARE_ENCODE                                                                           \
  void encode(const EncodeArgs& args, const EncodeOut& out, int threads);                                    \
  void encode_screened(const EncodeArgs& args, const ScreenArgs& screen, const EncodeOut& out, int threads); \
  void topk_activations(const EncodeArgs& args, const EditedRows& edited, int threads, void* f);

namespace portable {
SPARSESTEER_DECLARE_ENCODE
}
namespace avx2 {
SPARSESTEER_DECLARE_ENCODE
}
namespace avx512 {
SPARSESTEER_DECLARE_ENCODE
}
namespace avx512_bf16 {
SPARSESTEER_DECLARE_ENCODE
}
#undef SPARSESTEER_DECLARE_ENCODE

}  // namespace sparsesteer
