// activations and activations_topk on CPU tensors.
#include <ATen/Functions.h>

#include <numeric>

#include "../check.h"
#include "encode_host.h"
#include "kernels.h"

namespace sparsesteer {

namespace {

// f [N, M], its tokens and what the kernels read of them.
struct Call {
  TokenTensors tensors;
  at::Tensor f;
  std::vector<int32_t> tokens;
  SteerArgs args;

  Call(const char* op, const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& rows,
       int64_t m, int64_t input_norm)
      : tensors(op, x, x, residual, std::nullopt), tokens(x.size(0)) {
    check_table(op, "rows", rows, {m, N_COLUMNS}, tensors.compute());
    f = at::empty({x.size(0), m}, rows.options());
    std::iota(tokens.begin(), tokens.end(), 0);
    args = SteerArgs{};
    args.tokens = tokens.data(), args.n = x.size(0), args.m = m, args.d = x.size(1);
    args.x = tensors.x.const_data_ptr(), args.x_stride = tensors.x.stride(0);
    if (residual) args.residual = tensors.residual.const_data_ptr(), args.residual_stride = tensors.residual.stride(0);
    args.input_norm = int(input_norm), args.tensor_type = scalar_of(op, x.scalar_type());
  }
};

}  // namespace

at::Tensor activations(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& encoder_any,
                       const at::Tensor& rows_any, int64_t input_norm) {
  TORCH_CHECK(x.dim() == 2 && encoder_any.dim() == 2, "activations: x and encoder should be matrices");
  const int64_t d = x.size(1), m = encoder_any.size(0);
  Call call("activations", x, residual, rows_any, m, input_norm);
  check_rows("activations", "encoder", encoder_any, {m, d}, call.tensors.compute());
  const at::Tensor encoder = encoder_any.contiguous(), rows = rows_any.contiguous();
  call.args.encoder = encoder.const_data_ptr(), call.args.rows = rows.const_data_ptr();
  call.args.row_type = scalar_of("activations", encoder.scalar_type());
  if (call.f.numel() > 0)
    SPARSESTEER_KERNEL(activations)(call.args, thread_count(rows_work(call.args.n, m * d)), call.f.data_ptr());
  return call.f;
}

at::Tensor activations_topk(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                            const at::Tensor& encoder_any, const at::Tensor& encoder_bias_any,
                            const at::Tensor& features_any, int64_t k, const at::Tensor& rows_any, int64_t input_norm) {
  check_encoder("activations_topk", x, encoder_any, k);
  const int64_t f = encoder_any.size(0), m = features_any.numel();
  const Call call("activations_topk", x, residual, rows_any, m, input_norm);
  check_table("activations_topk", "encoder_bias", encoder_bias_any, {f}, call.tensors.compute());
  check_features("activations_topk", features_any, f);
  const at::Tensor encoder = encoder_any.contiguous(), encoder_bias = encoder_bias_any.contiguous();
  const at::Tensor features = features_any.contiguous(), rows = rows_any.contiguous();
  EncodeArgs args = encode_args("activations_topk", call.tensors.x, encoder, k, input_norm);
  args.residual = call.args.residual, args.residual_stride = call.args.residual_stride;
  args.rows = encoder_bias.const_data_ptr(), args.row_stride = 1;
  const EditedRows edited{features.const_data_ptr<int64_t>(), rows.const_data_ptr(), m, k > 0};
  const int64_t encoded = k > 0 ? f : m;
  if (call.f.numel() > 0)
    SPARSESTEER_KERNEL(topk_activations)(args, edited, thread_count(args.n * encoded * args.d), call.f.data_ptr());
  return call.f;
}

}  // namespace sparsesteer
