// steer_reconstruct on CPU tensors.
#include <ATen/Functions.h>

#include "../check.h"
#include "../ops.h"
#include "kernels.h"
#include "reconstruct_args.h"
#include "token_args.h"

namespace sparsesteer {

namespace {

constexpr const char* kOp = "steer_reconstruct";

void check_features(const at::Tensor& features, int64_t f) {
  const int64_t* feature = features.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < features.size(0); ++j) {
    TORCH_CHECK(feature[j] >= 0 && feature[j] < f, kOp, ": feature ", feature[j], " is out of range, the SAE has ", f);
    TORCH_CHECK(j == 0 || feature[j] > feature[j - 1], kOp, ": features should rise, ", feature[j], " comes after ",
                feature[j - 1]);
  }
}

}  // namespace

at::Tensor steer_reconstruct(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                             const at::Tensor& encoder_any, const at::Tensor& table_any, int64_t k,
                             const at::Tensor& features_any, const at::Tensor& rows_any, const at::Tensor& decoder_any,
                             const at::Tensor& bias_any, const std::optional<at::Tensor>& token_strength,
                             double strength, int64_t input_norm, bool preserve_norm) {
  const TokenTensors tokens(kOp, x, into, residual, token_strength);
  TORCH_CHECK(encoder_any.dim() == 2 && features_any.dim() == 1, kOp,
              ": encoder should be a matrix, features a vector");
  const int64_t n = x.size(0), d = x.size(1), d_out = into.size(1), f = encoder_any.size(0), m = features_any.size(0);
  const at::ScalarType compute = tokens.compute();
  check_rows(kOp, "encoder", encoder_any, {f, d}, compute);
  check_rows(kOp, "decoder", decoder_any, {f, d_out}, compute);
  check_dtype(kOp, "decoder", decoder_any, encoder_any.scalar_type());
  check_table(kOp, "table", table_any, {f, N_COLUMNS}, compute);
  check_table(kOp, "features", features_any, {m}, at::kLong);
  check_table(kOp, "rows", rows_any, {m, N_COLUMNS}, compute);
  check_table(kOp, "bias", bias_any, {d_out}, compute);
  TORCH_CHECK(k >= 0, kOp, ": k should not be negative, got ", k);
  const at::Tensor encoder = encoder_any.contiguous(), decoder = decoder_any.contiguous();
  const at::Tensor table = table_any.contiguous(), rows = rows_any.contiguous(), bias = bias_any.contiguous();
  const at::Tensor features = features_any.contiguous();
  check_features(features, f);

  at::Tensor out = at::empty(into.sizes(), into.options());
  ReconstructArgs args{tokens.args(kOp, out, strength), table.const_data_ptr(), features.const_data_ptr<int64_t>(), f,
                       k};
  SteerArgs& steer = args.steer;
  steer.encoder = encoder.const_data_ptr(), steer.decoder = decoder.const_data_ptr();
  steer.row_type = scalar_of(kOp, encoder.scalar_type());
  steer.rows = rows.const_data_ptr(), steer.m = m, steer.delta_bias = bias.const_data_ptr();
  steer.input_norm = int(input_norm), steer.preserve_norm = preserve_norm;
  const std::vector<int32_t> live = live_tokens(steer, n);
  copy_others(steer, n, live);
  steer.tokens = live.data(), steer.n = int64_t(live.size());
  if (!live.empty()) SPARSESTEER_KERNEL(steer_reconstruct)(args, thread_count(steer.n * f * d));
  return out;
}

}  // namespace sparsesteer
