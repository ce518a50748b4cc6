#include "token_args.h"

#include <ATen/Parallel.h>

#include <cstring>

#include "../check.h"

namespace sparsesteer {

namespace {

const void* pointer(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

void check_on_cpu(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().is_cpu(), op, ": all tensors should be on the CPU, ", name, " is on ", tensor.device());
}

template <typename C>
std::vector<int32_t> live_tokens_of(const SteerArgs& args, int64_t n) {
  const C* per_token = static_cast<const C*>(args.token_strength);
  std::vector<int32_t> live;
  live.reserve(n);
  for (int64_t t = 0; t < n; ++t)
    if (C(args.strength) * (per_token ? per_token[t] : C(1)) != 0) live.push_back(int32_t(t));
  return live;
}

}  // namespace

int thread_count(int64_t work) { return at::in_parallel_region() || work < kSerialWork ? 1 : at::get_num_threads(); }

Scalar scalar_of(const char* op, at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Scalar::FLOAT;
    case at::kBFloat16: return Scalar::BFLOAT16;
    case at::kHalf: return Scalar::HALF;
    case at::kDouble: return Scalar::DOUBLE;
    default: TORCH_CHECK(false, op, ": x should be fp32, fp64, fp16 or bf16, got ", type);
  }
}

at::ScalarType compute_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

TokenTensors::TokenTensors(const char* op, const at::Tensor& x_any, const at::Tensor& into_any,
                           const std::optional<at::Tensor>& residual_any,
                           const std::optional<at::Tensor>& token_strength_any) {
  TORCH_CHECK(x_any.dim() == 2 && into_any.dim() == 2, op, ": x and into should be matrices");
  const int64_t n = x_any.size(0);
  check_shape(op, "into", into_any, {n, into_any.size(1)});
  check_dtype(op, "into", into_any, x_any.scalar_type());
  check_on_cpu(op, "into", into_any);
  if (residual_any) check_shape(op, "residual", *residual_any, x_any.sizes());
  if (residual_any) check_dtype(op, "residual", *residual_any, x_any.scalar_type());
  if (token_strength_any)
    check_table(op, "token_strength", *token_strength_any, {n}, compute_type(x_any.scalar_type()));
  x = with_contiguous_rows(x_any), into = with_contiguous_rows(into_any);
  if (residual_any) residual = with_contiguous_rows(*residual_any);
  if (token_strength_any) token_strength = token_strength_any->contiguous();
}

SteerArgs TokenTensors::args(const char* op, const at::Tensor& out, double strength) const {
  check_shape(op, "out", out, into.sizes());
  check_dtype(op, "out", out, into.scalar_type());
  TORCH_CHECK(out.size(1) <= 1 || out.stride(1) == 1, op, ": the rows of out should be contiguous");
  SteerArgs args{};
  args.x = x.const_data_ptr(), args.x_stride = x.stride(0);
  args.into = into.const_data_ptr(), args.into_stride = into.stride(0);
  args.residual = pointer(residual), args.residual_stride = residual.defined() ? residual.stride(0) : 0;
  args.out = out.data_ptr(), args.out_stride = out.stride(0);
  args.token_strength = pointer(token_strength), args.strength = strength;
  args.d = x.size(1), args.d_out = into.size(1);
  args.tensor_type = scalar_of(op, x.scalar_type());
  return args;
}

void check_rows(const char* op, const char* name, const at::Tensor& rows, at::IntArrayRef shape,
                at::ScalarType compute) {
  check_shape(op, name, rows, shape);
  check_on_cpu(op, name, rows);
  TORCH_CHECK(rows.scalar_type() == compute || (compute == at::kFloat && rows.scalar_type() == at::kBFloat16), op, ": ",
              name, " should be ", compute, compute == at::kFloat ? " or bf16" : "", ", got ", rows.scalar_type());
}

void check_table(const char* op, const char* name, const at::Tensor& table, at::IntArrayRef shape,
                 at::ScalarType compute) {
  check_shape(op, name, table, shape);
  check_on_cpu(op, name, table);
  check_dtype(op, name, table, compute);
}

std::vector<int32_t> live_tokens(const SteerArgs& args, int64_t n) {
  return args.tensor_type == Scalar::DOUBLE ? live_tokens_of<double>(args, n) : live_tokens_of<float>(args, n);
}

void copy_others(const SteerArgs& args, int64_t n, const std::vector<int32_t>& listed) {
  if (args.out == args.into || int64_t(listed.size()) == n) return;
  const int64_t size = args.tensor_type == Scalar::DOUBLE ? 8 : args.tensor_type == Scalar::FLOAT ? 4 : 2;
  size_t next = 0;
  for (int64_t t = 0; t < n; ++t) {
    if (next < listed.size() && listed[next] == t)
      ++next;
    else
      std::memcpy(static_cast<char*>(args.out) + t * args.out_stride * size,
                  static_cast<const char*>(args.into) + t * args.into_stride * size, args.d_out * size);
  }
}

}  // namespace sparsesteer
