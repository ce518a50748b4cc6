// steer on CPU tensors: checks, choice of instruction set and number of threads.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "../check.h"
#include "../ops.h"
#include "steer_args.h"

namespace sparsesteer {

namespace {

constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds below which a second thread costs more than it brings

Scalar scalar_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Scalar::FLOAT;
    case at::kBFloat16: return Scalar::BFLOAT16;
    case at::kHalf: return Scalar::HALF;
    case at::kDouble: return Scalar::DOUBLE;
    default: TORCH_CHECK(false, "steer: x should be fp32, fp64, fp16 or bf16, got ", type);
  }
}

void check(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
           const at::Tensor& encoder, const at::Tensor& decoder, const at::Tensor& rows,
           const std::optional<at::Tensor>& delta_bias, const std::optional<at::Tensor>& token_strength) {
  TORCH_CHECK(x.dim() == 2 && into.dim() == 2 && encoder.dim() == 2 && decoder.dim() == 2,
              "steer: x, into, encoder and decoder should be matrices");
  const int64_t n = x.size(0), d = x.size(1), d_out = into.size(1), m = encoder.size(0);
  const at::ScalarType compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  check_shape("steer", "into", into, {n, d_out});
  check_dtype("steer", "into", into, x.scalar_type());
  check_shape("steer", "encoder", encoder, {m, d});
  check_shape("steer", "decoder", decoder, {m, d_out});
  check_shape("steer", "rows", rows, {m, N_COLUMNS});
  check_dtype("steer", "rows", rows, compute);
  check_dtype("steer", "decoder", decoder, encoder.scalar_type());
  TORCH_CHECK(encoder.scalar_type() == compute || (compute == at::kFloat && encoder.scalar_type() == at::kBFloat16),
              "steer: encoder should be ", compute, compute == at::kFloat ? " or bf16" : "", " for x of ",
              x.scalar_type(), ", got ", encoder.scalar_type());
  if (residual) check_shape("steer", "residual", *residual, {n, d});
  if (residual) check_dtype("steer", "residual", *residual, x.scalar_type());
  if (delta_bias) check_shape("steer", "delta_bias", *delta_bias, {d_out});
  if (delta_bias) check_dtype("steer", "delta_bias", *delta_bias, compute);
  if (token_strength) check_shape("steer", "token_strength", *token_strength, {n});
  if (token_strength) check_dtype("steer", "token_strength", *token_strength, compute);
  for (const at::Tensor* tensor : {&into, &encoder, &decoder, &rows})
    TORCH_CHECK(tensor->device().is_cpu(), "steer: all tensors should be on the CPU, one is on ", tensor->device());
}

int thread_count(int64_t n, int64_t d, int64_t d_out, int64_t m) {
  if (at::in_parallel_region() || n * m * (d + d_out) < kSerialWork) return 1;
  return at::get_num_threads();
}

using Kernel = void (*)(const SteerArgs&, int);

Kernel kernel() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (simd_level() == SimdLevel::AVX512) return avx512::steer;
  if (simd_level() == SimdLevel::AVX2) return avx2::steer;
#endif
  return portable::steer;
}

}  // namespace

void steer_out(const at::Tensor& x_any, const at::Tensor& into_any, const std::optional<at::Tensor>& residual_any,
               const at::Tensor& encoder_any, const at::Tensor& decoder_any, const at::Tensor& rows_any,
               const std::optional<at::Tensor>& delta_bias_any, const std::optional<at::Tensor>& token_strength_any,
               double strength, int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm,
               at::Tensor out) {
  check(x_any, into_any, residual_any, encoder_any, decoder_any, rows_any, delta_bias_any, token_strength_any);
  check_shape("steer", "out", out, into_any.sizes());
  check_dtype("steer", "out", out, into_any.scalar_type());
  TORCH_CHECK(out.size(1) <= 1 || out.stride(1) == 1, "steer: the rows of out should be contiguous");
  const at::Tensor x = with_contiguous_rows(x_any), into = with_contiguous_rows(into_any);
  const at::Tensor encoder = encoder_any.contiguous(), decoder = decoder_any.contiguous(), rows = rows_any.contiguous();
  const at::Tensor residual = residual_any ? with_contiguous_rows(*residual_any) : at::Tensor();
  const at::Tensor bias = delta_bias_any ? delta_bias_any->contiguous() : at::Tensor();
  const at::Tensor per_token = token_strength_any ? token_strength_any->contiguous() : at::Tensor();
  const auto pointer = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; };

  SteerArgs args{};
  args.x = x.const_data_ptr(), args.x_stride = x.stride(0);
  args.into = into.const_data_ptr(), args.into_stride = into.stride(0);
  args.residual = pointer(residual), args.residual_stride = residual.defined() ? residual.stride(0) : 0;
  args.out = out.data_ptr(), args.out_stride = out.stride(0);
  args.encoder = encoder.const_data_ptr(), args.decoder = decoder.const_data_ptr();
  args.rows = rows.const_data_ptr();
  args.delta_bias = pointer(bias), args.token_strength = pointer(per_token);
  args.strength = strength, args.gap = gap;
  args.n = x.size(0), args.d = x.size(1), args.d_out = into.size(1), args.m = encoder.size(0);
  args.input_norm = int(input_norm), args.scale_rule = int(scale_rule), args.preserve_norm = preserve_norm;
  args.tensor_type = scalar_of(x.scalar_type());
  args.row_type = scalar_of(encoder.scalar_type());
  kernel()(args, thread_count(args.n, args.d, args.d_out, args.m));
}

at::Tensor steer(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                 const at::Tensor& encoder, const at::Tensor& decoder, const at::Tensor& rows,
                 const std::optional<at::Tensor>& delta_bias, const std::optional<at::Tensor>& token_strength,
                 double strength, int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm) {
  at::Tensor out = at::empty(into.sizes(), into.options());
  steer_out(x, into, residual, encoder, decoder, rows, delta_bias, token_strength, strength, input_norm, scale_rule,
            gap, preserve_norm, out);
  return out;
}

}  // namespace sparsesteer
