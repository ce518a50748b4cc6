// The short way to an op: from Python to the kernel past the dispatcher, wherever the dispatcher would add nothing.
// For one token the dispatcher and the checks in Python cost as much as the kernel.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <vector>

#include "ops.h"

namespace sparsesteer {

namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

// Wrappers and lazy transformations, whose data must not be touched behind the dispatcher's back.
const DispatchKeySet kNotPlain({DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::Negative,
                                DispatchKey::Conjugate, DispatchKey::ZeroTensor, DispatchKey::Functionalize,
                                DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper,
                                DispatchKey::FuncTorchDynamicLayerFrontMode, DispatchKey::NestedTensor});

bool nobody_watches() {
  return !at::hasCallbacks() && !c10::impl::tls_local_dispatch_key_set().included_.has_any(kNotPlain);
}

bool is_plain(const at::Tensor& tensor, at::ScalarType dtype, bool gradient) {
  return tensor.device().is_cpu() && tensor.scalar_type() == dtype && tensor.layout() == at::kStrided &&
         !tensor.key_set().has_any(kNotPlain) && !(gradient && tensor.requires_grad());
}

at::ScalarType compute_of(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

bool is_served(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble;
}

// What rows beside tokens of a type may be, where they are of this type.
at::ScalarType row_type(const at::Tensor& rows, at::ScalarType compute) {
  return rows.scalar_type() == at::kBFloat16 && compute == at::kFloat ? at::kBFloat16 : compute;
}

at::Tensor as_matrix(const at::Tensor& tensor) {
  return tensor.dim() == 2 ? tensor : tensor.reshape({-1, tensor.size(-1)});
}

}  // namespace

std::optional<at::Tensor> steer_eager(const at::Tensor& h, const std::optional<at::Tensor>& into_given,
                                      const std::optional<at::Tensor>& residual, const at::Tensor& encoder,
                                      const at::Tensor& decoder, const at::Tensor& rows,
                                      const std::optional<at::Tensor>& delta_bias, double strength, int64_t input_norm,
                                      int64_t scale_rule, double gap, bool preserve_norm) {
  const at::Tensor& into = into_given ? *into_given : h;
  const at::ScalarType dtype = h.scalar_type(), compute = compute_of(dtype);
  if (!is_served(dtype)) return {};
  const bool gradient = c10::GradMode::is_enabled();
  const at::ScalarType row_dtype = row_type(encoder, compute);
  const bool usual = nobody_watches() && is_plain(h, dtype, gradient) && is_plain(into, dtype, gradient) &&
                     (!residual || is_plain(*residual, dtype, gradient)) && is_plain(encoder, row_dtype, gradient) &&
                     is_plain(decoder, row_dtype, gradient) && is_plain(rows, compute, gradient) &&
                     (!delta_bias || is_plain(*delta_bias, compute, gradient));
  if (!usual || !std::isfinite(strength) || h.dim() == 0 || into.dim() != h.dim() || h.size(-1) != encoder.size(1) ||
      into.size(-1) != decoder.size(1) || into.sizes().slice(0, h.dim() - 1) != h.sizes().slice(0, h.dim() - 1) ||
      (residual && residual->sizes() != h.sizes()))
    return {};
  const at::Tensor x = as_matrix(h), w = into.is_same(h) ? x : as_matrix(into);
  const std::optional<at::Tensor> added = residual ? std::optional(as_matrix(*residual)) : std::nullopt;
  const at::Tensor out = steer(x, w, added, encoder, decoder, rows, delta_bias, std::nullopt, strength, input_norm,
                               scale_rule, gap, preserve_norm);
  return h.dim() == 2 ? out : out.view(into.sizes());
}

std::optional<at::Tensor> activations_eager(const at::Tensor& h, const std::optional<at::Tensor>& residual,
                                            const at::Tensor& encoder, const at::Tensor& rows, int64_t input_norm) {
  const at::ScalarType dtype = h.scalar_type(), compute = compute_of(dtype);
  if (!is_served(dtype)) return {};
  const bool gradient = c10::GradMode::is_enabled();
  const bool usual = nobody_watches() && is_plain(h, dtype, gradient) &&
                     (!residual || is_plain(*residual, dtype, gradient)) &&
                     is_plain(encoder, row_type(encoder, compute), gradient) && is_plain(rows, compute, gradient);
  if (!usual || h.dim() == 0 || h.size(-1) != encoder.size(1) || (residual && residual->sizes() != h.sizes()))
    return {};
  const std::optional<at::Tensor> added = residual ? std::optional(as_matrix(*residual)) : std::nullopt;
  const at::Tensor f = activations(as_matrix(h), added, encoder, rows, input_norm);
  if (h.dim() == 2) return f;
  std::vector<int64_t> shape = h.sizes().vec();
  shape.back() = f.size(1);
  return f.view(shape);
}

}  // namespace sparsesteer
