// What all kernels here build on: reading and writing rows, sums over a warp, pieces of a buffer.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "args.h"

namespace sparsesteer::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kChunk = 8;  // elements that a thread reads at once: 16 bytes of a 16-bit type, twice 16 of fp32

__device__ inline int lane_id() { return int(threadIdx.x) % kWarp; }
__device__ inline int warp_id() { return int(threadIdx.x) / kWarp; }
__device__ inline int warps_of_block() { return int(blockDim.x) / kWarp; }
__device__ inline unsigned lanes_below(int lane) { return (1u << lane) - 1u; }

__device__ inline void* dynamic_shared_memory() {
  extern __shared__ float4 shared_memory[];
  return shared_memory;
}

__device__ inline void wait_for_all_blocks() { cooperative_groups::this_grid().sync(); }

__host__ __device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float widen(__half v) { return __half2float(v); }

// True if rows of this width can be read in aligned chunks.
inline bool in_chunks(const void* rows, int64_t stride, int width, int element_bytes) {
  const auto address = reinterpret_cast<uintptr_t>(rows);
  return width % kChunk == 0 && address % sizeof(uint4) == 0 && stride * element_bytes % sizeof(uint4) == 0;
}

// The same of x and residual.
inline bool x_in_chunks(const Tokens& a) {
  const int bytes = a.type == Scalar::FLOAT ? 4 : 2;
  return in_chunks(a.x, a.x_stride, a.d, bytes) &&
         (!a.residual || in_chunks(a.residual, a.residual_stride, a.d, bytes));
}

// Elements [c, c + kChunk) of a row, zeros past its end. `aligned`: what in_chunks() said.
template <typename T>
__device__ inline void load_chunk(const T* row, int c, int width, bool aligned, float (&v)[kChunk]) {
  if (aligned) {
    alignas(sizeof(uint4)) T elements[kChunk];
    constexpr int kVectors = sizeof(elements) / sizeof(uint4);
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      reinterpret_cast<uint4*>(elements)[i] = reinterpret_cast<const uint4*>(row + c)[i];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = widen(elements[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = c + i < width ? widen(row[c + i]) : 0.0f;
  }
}

__device__ inline void load_chunk(const void* row, Scalar type, int c, int width, bool aligned, float (&v)[kChunk]) {
  if (type == Scalar::FLOAT) load_chunk(static_cast<const float*>(row), c, width, aligned, v);
  if (type == Scalar::BFLOAT16) load_chunk(static_cast<const __nv_bfloat16*>(row), c, width, aligned, v);
  if (type == Scalar::HALF) load_chunk(static_cast<const __half*>(row), c, width, aligned, v);
}

__device__ inline float load_one(const void* p, Scalar type, int64_t i) {
  if (type == Scalar::FLOAT) return static_cast<const float*>(p)[i];
  if (type == Scalar::BFLOAT16) return widen(static_cast<const __nv_bfloat16*>(p)[i]);
  return widen(static_cast<const __half*>(p)[i]);
}

__device__ inline void store_one(void* p, Scalar type, int64_t i, float v) {
  if (type == Scalar::FLOAT) static_cast<float*>(p)[i] = v;
  if (type == Scalar::BFLOAT16) static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16(v);
  if (type == Scalar::HALF) static_cast<__half*>(p)[i] = __float2half(v);
}

// Bit for bit.
__device__ inline void copy_one(void* to, int64_t i, const void* from, int64_t j, Scalar type) {
  if (type == Scalar::FLOAT)
    static_cast<uint32_t*>(to)[i] = static_cast<const uint32_t*>(from)[j];
  else
    static_cast<uint16_t*>(to)[i] = static_cast<const uint16_t*>(from)[j];
}

// The sum over a warp, the same bits in every lane.
__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(kAllLanes, v, distance);
  return v;
}

__device__ inline int warp_sum(int v) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(kAllLanes, v, distance);
  return v;
}

// The sum over this lane and those below it.
__device__ inline int warp_prefix_sum(int v) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int below = __shfl_up_sync(kAllLanes, v, distance);
    if (lane_id() >= distance) v += below;
  }
  return v;
}

// Hands out pieces of a buffer, each on a border of 16 bytes; from a null buffer it only counts.
class Carver {
 public:
  __host__ __device__ explicit Carver(void* buffer) : address(reinterpret_cast<uintptr_t>(buffer)) {}

  template <typename T>
  __host__ __device__ T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(address + used);
    used += round_up(count * int64_t(sizeof(T)), 16);
    return piece;
  }

  __host__ __device__ size_t bytes() const { return used; }

 private:
  uintptr_t address;
  size_t used = 0;
};

}  // namespace sparsesteer::cuda
