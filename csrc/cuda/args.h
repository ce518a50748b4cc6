// What the binding hands to the CUDA kernels: raw pointers of one device, strides in elements. No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace sparsesteer::cuda {

enum class Scalar { FLOAT, BFLOAT16, HALF };

constexpr int kMostEditTokens = 32;   // of a call of steer or steer_slots: a warp forms the groups
constexpr int kMostStreamTokens = 8;  // of a call of steer_topk or steer_reconstruct: sums stay in registers
constexpr int kMostTopkEdits = 1024;  // edited features of steer_topk: their ranks are counted in shared memory

// The tensors read and written, all of one type.
struct Tokens {
  const void* x;         // [n, d]
  const void* residual;  // [n, d] or null
  const void* into;      // [n, d_out]
  void* out;             // [n, d_out], may be x or into
  int64_t x_stride, residual_stride, into_stride, out_stride;
  const float* token_strength;  // [n] or null
  float strength;
  int n, d, d_out;
  Scalar type;
};

// steer, and steer_slots where `slot` is given. Encoder and decoder are contiguous.
struct EditArgs {
  Tokens tokens;
  const void* encoder;       // [r, d]
  const void* decoder;       // [r, d_out]
  Scalar row_type;           // FLOAT or BFLOAT16
  const float* rows;         // [entries, N_COLUMNS]
  const float* bias;         // [d_out] or null; with slots [n_slots, d_out]
  const int32_t* slot;       // [n] or null: every token follows the one plan
  const int32_t* slots;      // [n_slots, 3]: first entry, number of entries, has_bias
  const int32_t* entry_row;  // [entries] or null: entry j is row j
  int entries, n_slots;
  float gap;
  int input_norm, scale_rule;
  bool preserve_norm;
  void* scratch;
  // set by edit()
  bool x_aligned, encoder_aligned, decoder_aligned;
  bool alone;  // every block encodes for itself and none waits
};

size_t edit_scratch_bytes(const EditArgs& args);
cudaError_t edit(const EditArgs& args, cudaStream_t stream);

struct TopkArgs {
  Tokens tokens;
  const void* encoder;        // [f, d]
  const float* encoder_bias;  // [f], a column of the SAE's table
  int64_t encoder_bias_stride;
  const int64_t* features;  // [m], ascending
  const void* decoder;      // [m, d_out]
  Scalar row_type;
  const float* rows;        // [m, N_COLUMNS]
  const float* delta_bias;  // [d_out] or null
  int f, m, k;
  float gap;
  int input_norm, scale_rule;
  bool preserve_norm;
  void* scratch;
  bool x_aligned, decoder_aligned;  // set by steer_topk()
};

// False if a call needs more shared memory than the current device has.
bool steer_topk_fits(const TopkArgs& args);
size_t steer_topk_scratch_bytes(const TopkArgs& args);
cudaError_t steer_topk(const TopkArgs& args, cudaStream_t stream);

struct ReconstructArgs {
  Tokens tokens;
  const void* encoder;      // [f, d]
  const float* table;       // [f, N_COLUMNS]
  const int64_t* features;  // [m], ascending
  const float* rows;        // [m, N_COLUMNS]
  const void* decoder;      // [f, d_out]
  const float* bias;        // [d_out]
  Scalar row_type;
  int f, m, k;
  int input_norm;
  bool preserve_norm;
  void* scratch;
  bool x_aligned, decoder_aligned;  // set by steer_reconstruct()
};

bool steer_reconstruct_fits(const ReconstructArgs& args);
size_t steer_reconstruct_scratch_bytes(const ReconstructArgs& args);
cudaError_t steer_reconstruct(const ReconstructArgs& args, cudaStream_t stream);

}  // namespace sparsesteer::cuda
