// How a change reaches the output: w' = w + s * change, and preserve_norm. A block works on slices of columns.
#pragma once

#include "rules.cuh"

namespace sparsesteer::cuda {

constexpr int kSlice = kWarp;  // columns of a slice: one for each lane that writes

// What preserve_norm keeps between its two passes; in global memory.
struct KeptNorms {
  float* edited;   // [n, d_out] the edited vectors
  float2* parts;   // [slices, n] squared norms of a slice before and after the edit
  int* unchanged;  // [n] 1 for tokens that keep their bits

  __host__ __device__ KeptNorms(Carver& scratch, const Tokens& a, bool preserve_norm) {
    const int n = preserve_norm ? a.n : 0;
    edited = scratch.take<float>(int64_t(n) * a.d_out);
    parts = scratch.take<float2>(int64_t(n) * ceil_div(a.d_out, kSlice));
    unchanged = scratch.take<int>(n);
  }
};

__device__ inline float strength_of(const Tokens& a, int token) {
  return a.token_strength ? a.strength * a.token_strength[token] : a.strength;
}

__device__ inline float load_into(const Tokens& a, int token, int column) {
  return load_one(a.into, a.type, token * a.into_stride + column);
}

__device__ inline void store_out(const Tokens& a, int token, int column, float value) {
  store_one(a.out, a.type, token * a.out_stride + column, value);
}

// A warp writes a slice of one token, or leaves it with its squared norms for finish(). changes: false if the token
// keeps its bits whatever `change` is.
__device__ inline void write_slice(const Tokens& a, int token, int slice, float change, bool changes,
                                   bool preserve_norm, const KeptNorms& norms) {
  const int column = slice * kSlice + lane_id();
  const bool inside = column < a.d_out;
  const float factor = strength_of(a, token);
  changes = changes && factor != 0.0f;
  if (!changes) {
    if (inside) copy_one(a.out, token * a.out_stride + column, a.into, token * a.into_stride + column, a.type);
  } else if (!preserve_norm) {
    if (inside) store_out(a, token, column, fmaf(factor, change, load_into(a, token, column)));
  } else {
    const float w = inside ? load_into(a, token, column) : 0.0f;
    const float y = inside ? fmaf(factor, change, w) : 0.0f;
    if (inside) norms.edited[int64_t(token) * a.d_out + column] = y;
    const float before = warp_sum(w * w), after = warp_sum(y * y);
    if (lane_id() == 0) norms.parts[slice * a.n + token] = {before, after};
  }
  if (preserve_norm && slice == 0 && lane_id() == 0) norms.unchanged[token] = !changes;
}

// The second pass of preserve_norm, after all blocks have written; slices are shared by all warps of the grid.
__device__ inline void finish(const Tokens& a, const KeptNorms& norms) {
  const int slices = ceil_div(a.d_out, kSlice);
  for (int job = blockIdx.x * warps_of_block() + warp_id(); job < a.n * slices; job += gridDim.x * warps_of_block()) {
    const int token = job / slices, column = job % slices * kSlice + lane_id();
    if (norms.unchanged[token]) continue;
    float before = 0.0f, after = 0.0f;
    for (int slice = lane_id(); slice < slices; slice += kWarp) {
      const float2 part = norms.parts[slice * a.n + token];
      before += part.x, after += part.y;
    }
    before = warp_sum(before), after = warp_sum(after);
    const float factor = after > 0.0f ? sqrtf(before) / sqrtf(after) : 1.0f;
    if (column < a.d_out) store_out(a, token, column, norms.edited[int64_t(token) * a.d_out + column] * factor);
  }
}

}  // namespace sparsesteer::cuda
