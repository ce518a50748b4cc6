// What all ops that write edits to tokens have in common: their tensors, the tokens that have work.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "steer_args.h"

namespace sparsesteer {

constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds below which a second thread costs more than it brings

// Multiply-adds of n tokens with rows of so many numbers; the first token's wait for memory, eight cost as much again.
constexpr int64_t rows_work(int64_t n, int64_t numbers) { return numbers * (n + 7) / 8; }

// Threads for so much work: one where more would not pay, or inside a parallel region of torch.
int thread_count(int64_t work);

Scalar scalar_of(const char* op, at::ScalarType type);

// fp64 for fp64, fp32 for all else.
at::ScalarType compute_type(at::ScalarType type);

// Tensors of a call with contiguous rows; they own what SteerArgs points to.
struct TokenTensors {
  at::Tensor x, into, residual, token_strength;

  // Checks shapes, dtypes and devices.
  TokenTensors(const char* op, const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
               const std::optional<at::Tensor>& token_strength);

  at::ScalarType compute() const { return compute_type(x.scalar_type()); }

  // Everything about tokens but which of them; out is [n, d_out] with contiguous rows.
  SteerArgs args(const char* op, const at::Tensor& out, double strength) const;
};

// Encoder or decoder rows: [rows, width] of x's compute type, or bf16 beside fp32.
void check_rows(const char* op, const char* name, const at::Tensor& rows, at::IntArrayRef shape,
                at::ScalarType compute);

// A table in the compute type.
void check_table(const char* op, const char* name, const at::Tensor& table, at::IntArrayRef shape,
                 at::ScalarType compute);

// The tokens in [0, n) of strength other than 0.
std::vector<int32_t> live_tokens(const SteerArgs& args, int64_t n);

// out = into for the tokens in [0, n) that are not listed (rising).
void copy_others(const SteerArgs& args, int64_t n, const std::vector<int32_t>& listed);

}  // namespace sparsesteer
