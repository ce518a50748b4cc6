// The ops of the package as C++ sees them; schemas live in sparsesteer/_schemas.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

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

// The instruction set that CPU kernels use on this machine: "avx512", "avx2" or "portable";
// SPARSESTEER_SIMD asks for a lower one.
const char* simd_level();

}  // namespace sparsesteer
