// steer_topk on CPU tensors: the edited features' activations under TopK, then steer with them.
#include <ATen/Functions.h>

#include <algorithm>

#include "../check.h"
#include "encode_host.h"
#include "kernels.h"

namespace sparsesteer {

namespace {

constexpr int64_t kBandNumbers = 1 << 21;  // activations [tokens, M] that are in memory at once

}  // namespace

at::Tensor steer_topk(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                      const at::Tensor& encoder_any, const at::Tensor& encoder_bias_any, const at::Tensor& features_any,
                      int64_t k, const at::Tensor& decoder_any, const at::Tensor& rows_any,
                      const std::optional<at::Tensor>& delta_bias_any, const std::optional<at::Tensor>& token_strength,
                      double strength, int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm) {
  const TokenTensors tensors("steer_topk", x, into, residual, token_strength);
  check_encoder("steer_topk", x, encoder_any, k);
  TORCH_CHECK(k > 0, "steer_topk: k should be positive, got ", k);
  const int64_t n = x.size(0), d_out = into.size(1), f = encoder_any.size(0), m = features_any.numel();
  const at::ScalarType compute = tensors.compute();
  check_table("steer_topk", "encoder_bias", encoder_bias_any, {f}, compute);
  check_rows("steer_topk", "decoder", decoder_any, {m, d_out}, compute);
  check_table("steer_topk", "rows", rows_any, {m, N_COLUMNS}, compute);
  if (delta_bias_any) check_table("steer_topk", "delta_bias", *delta_bias_any, {d_out}, compute);
  check_features("steer_topk", features_any, f);
  const at::Tensor encoder = encoder_any.contiguous(), encoder_bias = encoder_bias_any.contiguous();
  const at::Tensor features = features_any.contiguous(), rows = rows_any.contiguous();
  const at::Tensor decoder = decoder_any.contiguous();
  const at::Tensor delta_bias = delta_bias_any ? delta_bias_any->contiguous() : at::Tensor();
  const at::Tensor out = at::empty(into.sizes(), into.options());

  SteerArgs steered = tensors.args("steer_topk", out, strength);
  steered.decoder = decoder.const_data_ptr(), steered.m = m;
  steered.row_type = scalar_of("steer_topk", decoder.scalar_type());
  steered.rows = rows.const_data_ptr(),
  steered.delta_bias = delta_bias.defined() ? delta_bias.const_data_ptr() : nullptr;
  steered.input_norm = int(input_norm), steered.scale_rule = int(scale_rule), steered.gap = gap;
  steered.preserve_norm = preserve_norm;
  const std::vector<int32_t> live = live_tokens(steered, n);
  copy_others(steered, n, live);

  EncodeArgs encoded = encode_args("steer_topk", tensors.x, encoder, k, input_norm);
  encoded.residual = steered.residual, encoded.residual_stride = steered.residual_stride;
  encoded.rows = encoder_bias.const_data_ptr(), encoded.row_stride = 1;
  const EditedRows edited{features.const_data_ptr<int64_t>(), rows.const_data_ptr(), m};
  const int64_t band = std::max<int64_t>(1, std::min(int64_t(live.size()), kBandNumbers / std::max<int64_t>(1, m)));
  const at::Tensor activations = at::empty({band, m}, rows.options());
  for (size_t first = 0; first < live.size(); first += band) {
    encoded.tokens = steered.tokens = live.data() + first;
    encoded.n = steered.n = std::min(band, int64_t(live.size() - first));
    SPARSESTEER_KERNEL(topk_activations)
    (encoded, edited, thread_count(encoded.n * f * encoded.d), activations.data_ptr());
    steered.activations = activations.const_data_ptr();
    SPARSESTEER_KERNEL(steer)(&steered, 1, thread_count(rows_work(steered.n, m * d_out)));
  }
  return out;
}

}  // namespace sparsesteer
