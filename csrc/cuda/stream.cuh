// Reading a whole encoder once for a few tokens, whose x waits in shared memory. Blocks own ranges of features, warps
// take several rows at a time. Encoder rows must be aligned and made of whole chunks.
#pragma once

#include "rules.cuh"

namespace sparsesteer::cuda {

constexpr int kStreamThreads =
    384;                        // one block a multiprocessor: x is staged once, and more threads would spill registers
constexpr int kRowsOfWarp = 4;  // rows that share the loads of x

struct Range {
  int begin, end;
};

// This block's features.
__device__ inline Range own_features(int f) {
  return {int(int64_t(f) * blockIdx.x / gridDim.x), int(int64_t(f) * (blockIdx.x + 1) / gridDim.x)};
}

// x of TOKENS tokens in fp32, zeros past the width and past the last token. A chunk is kept as two halves in planes of
// their own, so that neighbouring lanes read neighbouring addresses.
template <int TOKENS>
class StagedInput {
 public:
  static __host__ __device__ int64_t floats(int width) { return int64_t(TOKENS) * ceil_div(width, kChunk) * kChunk; }

  __device__ StagedInput(float* memory, int width)
      : memory(reinterpret_cast<float4*>(memory)), width(width), chunks(ceil_div(width, kChunk)) {}

  __device__ void load(int token, int chunk, float (&v)[kChunk]) const {
    const float4 low = memory[2 * token * chunks + chunk], high = memory[(2 * token + 1) * chunks + chunk];
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }

  // Reads x (+ residual), all threads together.
  __device__ void stage(const Tokens& a, bool aligned) {
    const int bytes = a.type == Scalar::FLOAT ? 4 : 2;
    for (int i = threadIdx.x; i < TOKENS * chunks; i += blockDim.x) {
      const int token = i / chunks, chunk = i % chunks;
      float v[kChunk] = {}, added[kChunk] = {};
      if (token < a.n) {
        const char* row = static_cast<const char*>(a.x) + token * a.x_stride * bytes;
        load_chunk(row, a.type, chunk * kChunk, width, aligned, v);
        if (a.residual) {
          row = static_cast<const char*>(a.residual) + token * a.residual_stride * bytes;
          load_chunk(row, a.type, chunk * kChunk, width, aligned, added);
        }
      }
      memory[2 * token * chunks + chunk] = {v[0] + added[0], v[1] + added[1], v[2] + added[2], v[3] + added[3]};
      memory[(2 * token + 1) * chunks + chunk] = {v[4] + added[4], v[5] + added[5], v[6] + added[6], v[7] + added[7]};
    }
    __syncthreads();
  }

  // Of all tokens, a warp for each, if they are needed; all threads together.
  __device__ void moments(bool needed, Moments (&result)[TOKENS]) const {
    if (needed)
      for (int token = warp_id(); token < TOKENS; token += warps_of_block()) {
        const Moments found = warp_moments(width, [&](int chunk, float (&v)[kChunk]) { load(token, chunk, v); });
        if (lane_id() == 0) result[token] = found;
      }
    __syncthreads();
  }

 private:
  float4* memory;
  int width, chunks;
};

// A chunk of a row that is read once: it should not drive anything out of the cache.
template <typename R>
__device__ inline void stream_chunk(const R* row, int c, float (&v)[kChunk]) {
  alignas(sizeof(uint4)) R elements[kChunk];
  constexpr int kVectors = sizeof(elements) / sizeof(uint4);
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    reinterpret_cast<uint4*>(elements)[i] = __ldcs(reinterpret_cast<const uint4*>(row + c) + i);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] = widen(elements[i]);
}

// One warp: E . x of kRowsOfWarp rows with all tokens. Lane r * TOKENS + t gets the product of row r and token t. Every
// product is summed in the same order whatever its place, so that equal rows tie exactly.
template <int TOKENS, typename R>
__device__ inline float warp_products(const R* const (&rows)[kRowsOfWarp], const StagedInput<TOKENS>& x, int width) {
  constexpr int kChunksTogether = TOKENS <= 2 ? 2 : 1;  // many sums leave no registers for more
  float sums[kRowsOfWarp][TOKENS] = {};
#pragma unroll kChunksTogether
  for (int chunk = lane_id(); chunk < width / kChunk; chunk += kWarp) {
    float e[kRowsOfWarp][kChunk], v[kChunk];
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) stream_chunk(rows[r], chunk * kChunk, e[r]);
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      x.load(t, chunk, v);
#pragma unroll
      for (int r = 0; r < kRowsOfWarp; ++r)
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sums[r][t] = fmaf(e[r][i], v[i], sums[r][t]);
    }
  }
  float mine = 0.0f;
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r)
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      const float sum = warp_sum(sums[r][t]);
      if (lane_id() == r * TOKENS + t) mine = sum;
    }
  return mine;
}

}  // namespace sparsesteer::cuda
