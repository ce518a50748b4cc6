// The ops of sparsesteer/_schemas.py that have CUDA kernels, for tensors of one CUDA device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace sparsesteer::cuda {

using MaybeTensor = std::optional<at::Tensor>;

at::Tensor steer(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual, const at::Tensor& encoder,
                 const at::Tensor& decoder, const at::Tensor& rows, const MaybeTensor& delta_bias,
                 const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule, double gap,
                 bool preserve_norm);

void steer_out(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual, const at::Tensor& encoder,
               const at::Tensor& decoder, const at::Tensor& rows, const MaybeTensor& delta_bias,
               const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule, double gap,
               bool preserve_norm, at::Tensor out);

at::Tensor steer_slots(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual, const at::Tensor& slot,
                       const at::Tensor& slots, const at::Tensor& encoder, const at::Tensor& decoder,
                       const at::Tensor& entry_row, const at::Tensor& rows, const at::Tensor& slot_bias,
                       const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule,
                       double gap, bool preserve_norm);

void steer_slots_out(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual, const at::Tensor& slot,
                     const at::Tensor& slots, const at::Tensor& encoder, const at::Tensor& decoder,
                     const at::Tensor& entry_row, const at::Tensor& rows, const at::Tensor& slot_bias,
                     const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule,
                     double gap, bool preserve_norm, at::Tensor out);

at::Tensor steer_topk(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual,
                      const at::Tensor& encoder, const at::Tensor& encoder_bias, const at::Tensor& features, int64_t k,
                      const at::Tensor& decoder, const at::Tensor& rows, const MaybeTensor& delta_bias,
                      const MaybeTensor& token_strength, double strength, int64_t input_norm, int64_t scale_rule,
                      double gap, bool preserve_norm);

at::Tensor steer_reconstruct(const at::Tensor& x, const at::Tensor& into, const MaybeTensor& residual,
                             const at::Tensor& encoder, const at::Tensor& table, int64_t k, const at::Tensor& features,
                             const at::Tensor& rows, const at::Tensor& decoder, const at::Tensor& bias,
                             const MaybeTensor& token_strength, double strength, int64_t input_norm,
                             bool preserve_norm);

// Why `op` has no kernel for such a call, so that another backend must serve it; empty if it has one.
std::string steer_refusal(const at::Tensor& x);
std::string steer_topk_refusal(const at::Tensor& x, const at::Tensor& into, const at::Tensor& encoder,
                               const at::Tensor& features);
std::string steer_reconstruct_refusal(const at::Tensor& x, const at::Tensor& encoder);

}  // namespace sparsesteer::cuda
