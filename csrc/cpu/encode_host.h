// Checks and arguments that all ops with a whole encoder have in common.
#pragma once

#include "../ops.h"
#include "encode_args.h"
#include "token_args.h"

namespace sparsesteer {

// x [N, D], encoder [F, D] that fits it, k >= 0.
void check_encoder(const char* op, const at::Tensor& x, const at::Tensor& encoder, int64_t k);

// features: int64 [M], each in [0, n_features).
void check_features(const char* op, const at::Tensor& features, int64_t n_features);

// All but the rows; x with contiguous rows, encoder contiguous. A k that keeps all features becomes 0.
EncodeArgs encode_args(const char* op, const at::Tensor& x, const at::Tensor& encoder, int64_t k, int64_t input_norm);

}  // namespace sparsesteer
