// steer_topk and steer_reconstruct on CUDA tensors: checks and launch.
#include "ops.h"
#include "tensors.h"

namespace sparsesteer::cuda {

namespace {

constexpr int64_t kAlignment = 16;  // bytes; encoder rows are read in vectors

// Why the encoder cannot be streamed; empty if it can.
std::string refuses_encoder(const at::Tensor& x, const at::Tensor& encoder) {
  if (std::string why = refuses_tokens(x, kMostStreamTokens); !why.empty()) return why;
  if (x.size(1) % 8 != 0)
    return "its CUDA kernel reads rows of 8 numbers at a time, the width is " + std::to_string(x.size(1));
  if (!encoder.is_contiguous() || reinterpret_cast<uintptr_t>(encoder.const_data_ptr()) % kAlignment != 0)
    return "its CUDA kernel reads a contiguous, aligned encoder";
  return "";
}

const char* const kTooWide = "x and the activations of its tokens do not fit in the device's shared memory";

Tokens shape_of(const at::Tensor& x, int64_t d_out) {
  Tokens tokens = {};
  tokens.n = int(x.size(0)), tokens.d = int(x.size(1)), tokens.d_out = int(d_out);
  return tokens;
}

}  // namespace

std::string steer_topk_refusal(const at::Tensor& x, const at::Tensor& into, const at::Tensor& encoder,
                               const at::Tensor& features) {
  if (std::string why = refuses_encoder(x, encoder); !why.empty()) return why;
  if (features.size(0) > kMostTopkEdits)
    return "its CUDA kernel serves at most " + std::to_string(kMostTopkEdits) + " edited features";
  const c10::cuda::CUDAGuard guard(x.device());
  TopkArgs args = {};
  args.tokens = shape_of(x, into.size(1)), args.f = int(encoder.size(0)), args.m = int(features.size(0));
  return steer_topk_fits(args) ? "" : kTooWide;
}

std::string steer_reconstruct_refusal(const at::Tensor& x, const at::Tensor& encoder) {
  if (std::string why = refuses_encoder(x, encoder); !why.empty()) return why;
  const c10::cuda::CUDAGuard guard(x.device());
  ReconstructArgs args = {};
  args.tokens = shape_of(x, 0), args.f = int(encoder.size(0));
  return steer_reconstruct_fits(args) ? "" : kTooWide;
}

at::Tensor steer_topk(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual,
                      const at::Tensor& encoder, const at::Tensor& encoder_bias, const at::Tensor& features, int64_t k,
                      const at::Tensor& decoder, const at::Tensor& rows, const MaybeTensor& delta_bias,
                      const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule,
                      double gap, bool preserve_norm) {
  const c10::cuda::CUDAGuard guard(x.device());
  Border border("steer_topk", x);
  check_served("steer_topk", steer_topk_refusal(x, into, encoder, features));
  at::Tensor out = at::empty(into.sizes(), into.options());
  const int64_t f = encoder.size(0), m = features.size(0);
  TORCH_CHECK(k >= 0, "steer_topk: k should not be negative, got ", k);
  TopkArgs args = {};
  args.tokens = border.tokens(into, residual, token_strength, strength, out);
  args.row_type = border.scalar_of(encoder, "encoder", false);
  args.encoder = border.read<void>("encoder", encoder, {f, args.tokens.d}, encoder.scalar_type());
  border.check("encoder_bias", encoder_bias, {f}, at::kFloat);
  args.encoder_bias = static_cast<const float*>(encoder_bias.const_data_ptr());
  args.encoder_bias_stride = encoder_bias.stride(0);
  args.features = border.read<int64_t>("features", features, {m}, at::kLong);
  args.decoder = border.read<void>("decoder", decoder, {m, args.tokens.d_out}, encoder.scalar_type());
  args.rows = border.read<float>("rows", rows, {m, N_COLUMNS}, at::kFloat);
  args.delta_bias = border.read<float>("delta_bias", delta_bias, {args.tokens.d_out}, at::kFloat);
  args.f = int(f), args.m = int(m), args.k = int(std::min(k, f));
  args.gap = float(gap);
  args.input_norm = int(input_norm), args.scale_rule = int(scale_rule), args.preserve_norm = preserve_norm;
  if (args.tokens.n == 0) return out;
  args.scratch = border.scratch(steer_topk_scratch_bytes(args));
  border.launched(steer_topk(args, c10::cuda::getCurrentCUDAStream()));
  return out;
}

at::Tensor steer_reconstruct(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual,
                             const at::Tensor& encoder, const at::Tensor& table, int64_t k, const at::Tensor& features,
                             const at::Tensor& rows, const at::Tensor& decoder, const at::Tensor& bias,
                             const MaybeTensor& token_strength, double strength, int64_t input_norm,
                             bool preserve_norm) {
  const c10::cuda::CUDAGuard guard(x.device());
  Border border("steer_reconstruct", x);
  check_served("steer_reconstruct", steer_reconstruct_refusal(x, encoder));
  at::Tensor out = at::empty(into.sizes(), into.options());
  const int64_t f = encoder.size(0), m = features.size(0);
  TORCH_CHECK(k >= 0, "steer_reconstruct: k should not be negative, got ", k);
  ReconstructArgs args = {};
  args.tokens = border.tokens(into, residual, token_strength, strength, out);
  args.row_type = border.scalar_of(encoder, "encoder", false);
  args.encoder = border.read<void>("encoder", encoder, {f, args.tokens.d}, encoder.scalar_type());
  args.table = border.read<float>("table", table, {f, N_COLUMNS}, at::kFloat);
  args.features = border.read<int64_t>("features", features, {m}, at::kLong);
  args.rows = border.read<float>("rows", rows, {m, N_COLUMNS}, at::kFloat);
  args.decoder = border.read<void>("decoder", decoder, {f, args.tokens.d_out}, encoder.scalar_type());
  args.bias = border.read<float>("bias", bias, {args.tokens.d_out}, at::kFloat);
  args.f = int(f), args.m = int(m), args.k = int(std::min(k, f));
  args.input_norm = int(input_norm), args.preserve_norm = preserve_norm;
  if (args.tokens.n == 0) return out;
  args.scratch = border.scratch(steer_reconstruct_scratch_bytes(args));
  border.launched(steer_reconstruct(args, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace sparsesteer::cuda
