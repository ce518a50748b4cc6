// Checks of op arguments below the Python border: wrong shapes must never reach a raw pointer.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

namespace sparsesteer {

inline void check_shape(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef want) {
  TORCH_CHECK(tensor.sizes() == want, op, ": ", name, " should have shape ", want, ", got ", tensor.sizes());
}

inline void check_dtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType want) {
  TORCH_CHECK(tensor.scalar_type() == want, op, ": ", name, " should be ", want, ", got ", tensor.scalar_type());
}

// A matrix whose rows are contiguous (the stride between rows is free), copied only if it has to be.
inline at::Tensor with_contiguous_rows(const at::Tensor& matrix) {
  return matrix.size(1) <= 1 || matrix.stride(1) == 1 ? matrix : matrix.contiguous();
}

}  // namespace sparsesteer
