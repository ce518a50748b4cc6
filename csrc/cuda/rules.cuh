// The rules of sparsesteer/_layout.py: scales of a token, activation and edit of a feature.
#pragma once

#include "../layout.h"
#include "common.cuh"

namespace sparsesteer::cuda {

// Of one token: mean, and the sum of squared distances from it.
struct Moments {
  float mean, m2;
};

__host__ __device__ inline bool scales_by_moments(int input_norm, int scale_rule) {
  return input_norm != int(InputNorm::NONE) ||
         (scale_rule != int(OutputScale::ONE) && scale_rule != int(OutputScale::GAP_FILL));
}

// By one warp, in two passes: a token's mean can be far larger than its spread. load(chunk, v) gives its elements.
template <typename Load>
__device__ inline Moments warp_moments(int width, Load load) {
  const int chunks = ceil_div(width, kChunk);
  float v[kChunk], sum = 0.0f, squares = 0.0f;
  for (int chunk = lane_id(); chunk < chunks; chunk += kWarp) {
    load(chunk, v);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum += v[i];  // zeros past the end
  }
  const float mean = warp_sum(sum) / float(width);
  for (int chunk = lane_id(); chunk < chunks; chunk += kWarp) {
    load(chunk, v);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const float centred = chunk * kChunk + i < width ? v[i] - mean : 0.0f;
      squares = fmaf(centred, centred, squares);
    }
  }
  return {mean, warp_sum(squares)};
}

__device__ inline float norm_of(Moments x, int width) { return sqrtf(fmaf(float(width) * x.mean, x.mean, x.m2)); }

__device__ inline float deviation_of(Moments x, int width) { return sqrtf(x.m2 / float(width - 1)); }

// The factor u of a token's products.
__device__ inline float input_scale(Moments x, int width, int input_norm) {
  if (input_norm == int(InputNorm::LAYER_NORM)) return 1.0f / (deviation_of(x, width) + float(LAYER_NORM_EPS));
  if (input_norm != int(InputNorm::CONSTANT_NORM)) return 1.0f;
  const float norm = norm_of(x, width);
  return norm > 0.0f ? sqrtf(float(width)) / norm : 0.0f;
}

// The factor r of a token's edit, but for GAP_FILL, which depends on the edit.
__device__ inline float output_scale(Moments x, int width, int scale_rule) {
  if (scale_rule == int(OutputScale::STD)) return deviation_of(x, width);
  if (scale_rule == int(OutputScale::RMS)) return norm_of(x, width) / sqrtf(float(width));
  if (scale_rule == int(OutputScale::NORM)) return norm_of(x, width);
  return 1.0f;
}

// f of a pre-activation z; row: [N_COLUMNS].
__device__ inline float activate(float z, const float* row) {
  return z > row[THRESHOLD] ? fmaxf(fmaf(row[SLOPE], z, row[SHIFT]), row[FLOOR]) : 0.0f;
}

// d, the change of an activation f.
__device__ inline float edit_delta(float f, const float* row) {
  if (row[GATE] != 0.0f && f <= 0.0f) return 0.0f;
  return fmaf(row[C2], fmaxf(f - row[KNOT], 0.0f), fmaf(row[C1], f, row[C0]));
}

}  // namespace sparsesteer::cuda
