// steer on CPU tensors.
#include <ATen/Functions.h>

#include "../check.h"
#include "../ops.h"
#include "kernels.h"
#include "token_args.h"

namespace sparsesteer {

void steer_out(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
               const at::Tensor& encoder_any, const at::Tensor& decoder_any, const at::Tensor& rows_any,
               const std::optional<at::Tensor>& delta_bias_any, const std::optional<at::Tensor>& token_strength,
               double strength, int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm,
               at::Tensor out) {
  const TokenTensors tokens("steer", x, into, residual, token_strength);
  TORCH_CHECK(encoder_any.dim() == 2, "steer: encoder should be a matrix");
  const int64_t n = x.size(0), d = x.size(1), d_out = into.size(1), m = encoder_any.size(0);
  const at::ScalarType compute = tokens.compute();
  check_rows("steer", "encoder", encoder_any, {m, d}, compute);
  check_rows("steer", "decoder", decoder_any, {m, d_out}, compute);
  check_dtype("steer", "decoder", decoder_any, encoder_any.scalar_type());
  check_table("steer", "rows", rows_any, {m, N_COLUMNS}, compute);
  if (delta_bias_any) check_table("steer", "delta_bias", *delta_bias_any, {d_out}, compute);
  const at::Tensor encoder = encoder_any.contiguous(), decoder = decoder_any.contiguous(), rows = rows_any.contiguous();
  const at::Tensor bias = delta_bias_any ? delta_bias_any->contiguous() : at::Tensor();

  SteerArgs args = tokens.args("steer", out, strength);
  args.encoder = encoder.const_data_ptr(), args.decoder = decoder.const_data_ptr(), args.m = m;
  args.row_type = scalar_of("steer", encoder.scalar_type());
  args.rows = rows.const_data_ptr(), args.delta_bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  args.input_norm = int(input_norm), args.scale_rule = int(scale_rule), args.gap = gap;
  args.preserve_norm = preserve_norm;
  const std::vector<int32_t> live = live_tokens(args, n);
  copy_others(args, n, live);
  if (live.empty()) return;
  args.tokens = live.data(), args.n = int64_t(live.size());
  SPARSESTEER_KERNEL(steer)(&args, 1, thread_count(rows_work(args.n, m * (d + d_out))));
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
