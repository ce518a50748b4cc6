// From tensors to what the kernels read: checks, pointers, and the tensors kept alive until the launch.
#pragma once

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>
#include <string>
#include <vector>

#include "../check.h"
#include "../layout.h"
#include "args.h"

namespace sparsesteer::cuda {

// Checks the tensors of one call and hands out their pointers.
class Border {
 public:
  Border(const char* op, const at::Tensor& x) : op(op), x(x) {
    TORCH_CHECK(x.dim() == 2, op, ": x should be a matrix, got shape ", x.sizes());
    scalar_of(x, "x", true);
  }

  // fp32, bf16 or, where `half` allows it, fp16.
  Scalar scalar_of(const at::Tensor& tensor, const char* name, bool half) const {
    if (tensor.scalar_type() == at::kFloat) return Scalar::FLOAT;
    if (tensor.scalar_type() == at::kBFloat16) return Scalar::BFLOAT16;
    TORCH_CHECK(half && tensor.scalar_type() == at::kHalf, op, ": ", name, " should be fp32 or bf16",
                half ? " or fp16" : "", " on a CUDA device, got ", tensor.scalar_type());
    return Scalar::HALF;
  }

  // The pointer of a contiguous tensor of this shape and type, of a copy if need be.
  template <typename T>
  const T* read(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType type) {
    check(name, tensor, shape, type);
    return static_cast<const T*>(keep(tensor.contiguous()));
  }

  template <typename T>
  const T* read(const char* name, const std::optional<at::Tensor>& tensor, at::IntArrayRef shape, at::ScalarType type) {
    return tensor ? read<T>(name, *tensor, shape, type) : nullptr;
  }

  // The same of rows with any stride between them.
  const void* read_rows(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, int64_t& stride) {
    check(name, tensor, shape, x.scalar_type());
    const at::Tensor rows = with_contiguous_rows(tensor);
    stride = rows.stride(0);
    return keep(rows);
  }

  void check(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType type) const {
    check_shape(op, name, tensor, shape);
    check_dtype(op, name, tensor, type);
    TORCH_CHECK(tensor.device() == x.device(), op, ": ", name, " is on ", tensor.device(), ", x on ", x.device());
  }

  Tokens tokens(const at::Tensor& into, const std::optional<at::Tensor>& residual,
                const std::optional<at::Tensor>& token_strength, double strength, const at::Tensor& out) {
    const int64_t n = x.size(0), d = x.size(1);
    TORCH_CHECK(into.dim() == 2, op, ": into should be a matrix, got shape ", into.sizes());
    const int64_t d_out = into.size(1);
    TORCH_CHECK(d > 0 && d_out > 0, op, ": x and into should have columns, got ", d, " and ", d_out);
    check("out", out, into.sizes(), x.scalar_type());
    TORCH_CHECK(d_out == 1 || out.stride(1) == 1, op, ": the rows of out should be contiguous");
    Tokens tokens = {};
    tokens.x = read_rows("x", x, {n, d}, tokens.x_stride);
    if (residual) tokens.residual = read_rows("residual", *residual, {n, d}, tokens.residual_stride);
    tokens.into = read_rows("into", into, {n, d_out}, tokens.into_stride);
    tokens.out = out.data_ptr(), tokens.out_stride = out.stride(0);
    tokens.token_strength = read<float>("token_strength", token_strength, {n}, at::kFloat);
    tokens.strength = float(strength);
    tokens.n = int(n), tokens.d = int(d), tokens.d_out = int(d_out);
    tokens.type = scalar_of(x, "x", true);
    return tokens;
  }

  // Device memory that belongs to the call: freed memory is reused in the order of the stream.
  void* scratch(size_t bytes) {
    return const_cast<void*>(keep(at::empty({int64_t(bytes)}, x.options().dtype(at::kByte))));
  }

  void launched(cudaError_t error) const {
    TORCH_CHECK(error == cudaSuccess, op, ": the CUDA kernel was not launched: ", cudaGetErrorString(error));
  }

 private:
  const void* keep(const at::Tensor& tensor) {
    alive.push_back(tensor);
    return tensor.const_data_ptr();
  }

  const char* op;
  const at::Tensor& x;
  std::vector<at::Tensor> alive;
};

// Why there is no kernel for this number of tokens or type of x; empty if there is one.
inline std::string refuses_tokens(const at::Tensor& x, int most) {
  if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kHalf)
    return "its CUDA kernels serve fp32, bf16 and fp16, x is " + std::string(c10::toString(x.scalar_type()));
  if (x.size(0) > most)
    return "its CUDA kernel serves at most " + std::to_string(most) + " tokens, x has " + std::to_string(x.size(0));
  return "";
}

inline void check_served(const char* op, const std::string& refusal) {
  TORCH_CHECK(refusal.empty(), op, ": backend 'native' cannot run: ", refusal);
}

}  // namespace sparsesteer::cuda
