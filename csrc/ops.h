// The ops of the package as C++ sees them; schemas live in sparsesteer/_schemas.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "layout.h"

namespace sparsesteer {

at::Tensor steer(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                 const at::Tensor& encoder, const at::Tensor& decoder, const at::Tensor& rows,
                 const std::optional<at::Tensor>& delta_bias, const std::optional<at::Tensor>& token_strength,
                 double strength, int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm);

void steer_out(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
               const at::Tensor& encoder, const at::Tensor& decoder, const at::Tensor& rows,
               const std::optional<at::Tensor>& delta_bias, const std::optional<at::Tensor>& token_strength,
               double strength, int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm, at::Tensor out);

at::Tensor steer_slots(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                       const at::Tensor& slot, const at::Tensor& slots, const at::Tensor& encoder,
                       const at::Tensor& decoder, const at::Tensor& entry_row, const at::Tensor& rows,
                       const at::Tensor& slot_bias, const std::optional<at::Tensor>& token_strength, double strength,
                       int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm);

void steer_slots_out(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                     const at::Tensor& slot, const at::Tensor& slots, const at::Tensor& encoder,
                     const at::Tensor& decoder, const at::Tensor& entry_row, const at::Tensor& rows,
                     const at::Tensor& slot_bias, const std::optional<at::Tensor>& token_strength, double strength,
                     int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm, at::Tensor& out);

// values [N, width], int32 indices [N, width] padded with -1, int32 counts [N].
using CodesOfTokens = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

CodesOfTokens encode(const at::Tensor& x, const at::Tensor& encoder, const at::Tensor& rows, int64_t k, int64_t width,
                     int64_t input_norm);

CodesOfTokens encode_screened(const at::Tensor& x, const at::Tensor& encoder, const at::Tensor& rows,
                              const at::Tensor& screen, const at::Tensor& screen_scale, const at::Tensor& screen_error,
                              int64_t k, int64_t width, int64_t input_norm);

at::Tensor steer_topk(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                      const at::Tensor& encoder, const at::Tensor& encoder_bias, const at::Tensor& features, int64_t k,
                      const at::Tensor& decoder, const at::Tensor& rows, const std::optional<at::Tensor>& delta_bias,
                      const std::optional<at::Tensor>& token_strength, double strength, int64_t input_norm,
                      int64_t scale_rule, double gap, bool preserve_norm);

// f [N, M] in the compute type: what steer edits.
at::Tensor activations(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& encoder,
                       const at::Tensor& rows, int64_t input_norm);

// What steer_topk edits; with k = 0 of an SAE without TopK.
at::Tensor activations_topk(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& encoder,
                            const at::Tensor& encoder_bias, const at::Tensor& features, int64_t k,
                            const at::Tensor& rows, int64_t input_norm);

at::Tensor decode(const at::Tensor& values, const at::Tensor& indices, const at::Tensor& decoder,
                  const at::Tensor& bias);

at::Tensor steer_reconstruct(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                             const at::Tensor& encoder, const at::Tensor& table, int64_t k, const at::Tensor& features,
                             const at::Tensor& rows, const at::Tensor& decoder, const at::Tensor& bias,
                             const std::optional<at::Tensor>& token_strength, double strength, int64_t input_norm,
                             bool preserve_norm);

// [f] in nats, of columns [f, n] with labels int32 [n] (-1: left out); no op of torch's, nothing of it is
// differentiable. noise [w, n] and its rising order int32 [w, n]; noise_rows int64 [f]: the row of them that each
// column takes.
at::Tensor mutual_information(const at::Tensor& columns, const at::Tensor& labels, const at::Tensor& noise,
                              const at::Tensor& order, const at::Tensor& noise_rows, int64_t n_neighbors);

// steer of h [..., d] without the dispatcher; nothing if the call needs it (gradients, tracing, tensor subclasses,
// arguments that do not fit and deserve a message).
std::optional<at::Tensor> steer_eager(const at::Tensor& h, const std::optional<at::Tensor>& into,
                                      const std::optional<at::Tensor>& residual, const at::Tensor& encoder,
                                      const at::Tensor& decoder, const at::Tensor& rows,
                                      const std::optional<at::Tensor>& delta_bias, double strength, int64_t input_norm,
                                      int64_t scale_rule, double gap, bool preserve_norm);

// activations of h [..., d], in the same way.
std::optional<at::Tensor> activations_eager(const at::Tensor& h, const std::optional<at::Tensor>& residual,
                                            const at::Tensor& encoder, const at::Tensor& rows, int64_t input_norm);

// The instruction set that CPU kernels use; SPARSESTEER_SIMD=portable|avx2|avx512|avx512_bf16 asks for a
// lower one.
enum class SimdLevel { PORTABLE, AVX2, AVX512, AVX512_BF16 };
SimdLevel simd_level();
std::string simd_name();
void set_simd_level(const std::string& name);

}  // namespace sparsesteer
