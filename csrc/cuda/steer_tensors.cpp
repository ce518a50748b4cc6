// steer and steer_slots on CUDA tensors: checks and launch.
#include "ops.h"
#include "tensors.h"

namespace sparsesteer::cuda {

namespace {

// What both ops share; encoder and decoder have as many rows as `encoder`.
EditArgs edit_args(Border& border, const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual,
                   const at::Tensor& encoder, const at::Tensor& decoder, const MaybeTensor& token_strength,
                   double strength, int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm,
                   const at::Tensor& out) {
  EditArgs args = {};
  args.tokens = border.tokens(into, residual, token_strength, strength, out);
  const int64_t r = encoder.size(0);
  args.row_type = border.scalar_of(encoder, "encoder", false);
  args.encoder = border.read<void>("encoder", encoder, {r, args.tokens.d}, encoder.scalar_type());
  args.decoder = border.read<void>("decoder", decoder, {r, args.tokens.d_out}, encoder.scalar_type());
  args.gap = float(gap);
  args.input_norm = int(input_norm), args.scale_rule = int(scale_rule), args.preserve_norm = preserve_norm;
  return args;
}

void run(Border& border, EditArgs& args) {
  if (args.tokens.n == 0) return;
  args.scratch = border.scratch(edit_scratch_bytes(args));
  border.launched(edit(args, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

std::string steer_refusal(const at::Tensor& x) { return refuses_tokens(x, kMostEditTokens); }

void steer_out(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual, const at::Tensor& encoder,
               const at::Tensor& decoder, const at::Tensor& rows, const MaybeTensor& delta_bias,
               const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule, double gap,
               bool preserve_norm, at::Tensor out) {
  const c10::cuda::CUDAGuard guard(x.device());
  Border border("steer", x);
  check_served("steer", steer_refusal(x));
  EditArgs args = edit_args(border, x, into, residual, encoder, decoder, token_strength, strength, input_norm,
                            scale_rule, gap, preserve_norm, out);
  const int64_t m = encoder.size(0);
  args.rows = border.read<float>("rows", rows, {m, N_COLUMNS}, at::kFloat);
  args.bias = border.read<float>("delta_bias", delta_bias, {args.tokens.d_out}, at::kFloat);
  args.entries = int(m), args.n_slots = 1;
  run(border, args);
}

at::Tensor steer(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual, const at::Tensor& encoder,
                 const at::Tensor& decoder, const at::Tensor& rows, const MaybeTensor& delta_bias,
                 const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule, double gap,
                 bool preserve_norm) {
  at::Tensor out = at::empty(into.sizes(), into.options());
  steer_out(x, into, residual, encoder, decoder, rows, delta_bias, token_strength, strength, input_norm, scale_rule,
            gap, preserve_norm, out);
  return out;
}

void steer_slots_out(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual, const at::Tensor& slot,
                     const at::Tensor& slots, const at::Tensor& encoder, const at::Tensor& decoder,
                     const at::Tensor& entry_row, const at::Tensor& rows, const at::Tensor& slot_bias,
                     const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule,
                     double gap, bool preserve_norm, at::Tensor out) {
  const c10::cuda::CUDAGuard guard(x.device());
  Border border("steer_slots", x);
  check_served("steer_slots", steer_refusal(x));
  EditArgs args = edit_args(border, x, into, residual, encoder, decoder, token_strength, strength, input_norm,
                            scale_rule, gap, preserve_norm, out);
  const int64_t entries = entry_row.size(0), n_slots = slots.size(0);
  args.slot = border.read<int32_t>("slot", slot, {args.tokens.n}, at::kInt);
  args.slots = border.read<int32_t>("slots", slots, {n_slots, 3}, at::kInt);
  args.entry_row = border.read<int32_t>("entry_row", entry_row, {entries}, at::kInt);
  args.rows = border.read<float>("rows", rows, {entries, N_COLUMNS}, at::kFloat);
  args.bias = border.read<float>("slot_bias", slot_bias, {n_slots, args.tokens.d_out}, at::kFloat);
  args.entries = int(entries), args.n_slots = int(n_slots);
  run(border, args);
}

at::Tensor steer_slots(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual, const at::Tensor& slot,
                       const at::Tensor& slots, const at::Tensor& encoder, const at::Tensor& decoder,
                       const at::Tensor& entry_row, const at::Tensor& rows, const at::Tensor& slot_bias,
                       const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule,
                       double gap, bool preserve_norm) {
  at::Tensor out = at::empty(into.sizes(), into.options());
  steer_slots_out(x, into, residual, slot, slots, encoder, decoder, entry_row, rows, slot_bias, token_strength,
                  strength, input_norm, scale_rule, gap, preserve_norm, out);
  return out;
}

}  // namespace sparsesteer::cuda
