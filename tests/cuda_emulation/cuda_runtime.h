// CUDA's language and runtime for a plain C++ compiler: enough to run this project's kernels, thread by thread, without
// a GPU. What it shows is their logic; nothing about speed, and nothing about weak memory order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda_runtime_api.h"
#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __shared__  // shared memory is one array, exchanged when another block runs
#define __launch_bounds__(...)

using std::max;
using std::min;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x) : x(x) {}  // NOLINT: CUDA converts a number too
};

inline const emulation::Index& threadIdx = emulation::machine().thread;
inline const emulation::Index& blockIdx = emulation::machine().block;
inline const emulation::Index& blockDim = emulation::machine().threads;
inline const emulation::Index& gridDim = emulation::machine().blocks;

inline void __syncthreads() { emulation::machine().wait_for_block(); }
inline void __syncwarp() { emulation::machine().wait_for_warp(); }

template <typename T>
T __shfl_sync(unsigned lanes, T value, int from) {
  return emulation::machine().exchange(lanes, value)[from % 32];
}
template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int mask) {
  return emulation::machine().exchange(lanes, value)[emulation::machine().lane() ^ mask];
}
template <typename T>
T __shfl_up_sync(unsigned lanes, T value, int distance) {
  const int lane = emulation::machine().lane();
  return emulation::machine().exchange(lanes, value)[lane < distance ? lane : lane - distance];
}
inline unsigned __ballot_sync(unsigned lanes, bool value) {
  const auto all = emulation::machine().exchange(lanes, int(value));
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= unsigned(all[lane] != 0) << lane;
  return result;
}
inline unsigned __match_any_sync(unsigned lanes, int value) {
  const auto all = emulation::machine().exchange(lanes, value);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= unsigned(all[lane] == value) << lane;
  return result;
}

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
inline int atomicAdd(int* p, int v) {
  const int before = *p;
  *p += v;
  return before;
}

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulation::Device& device = emulation::device();
  *value = attribute == cudaDevAttrMultiProcessorCount ? device.multiprocessors : int(device.shared_bytes);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return size_t(bytes) <= emulation::device().shared_bytes ? cudaSuccess : cudaErrorInvalidValue;
}
template <typename Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Args), const Args& args) {
  if (config->dynamicSmemBytes > emulation::device().shared_bytes) return cudaErrorInvalidValue;
  const bool together = config->numAttrs > 0 && config->attrs[0].val.cooperative != 0;
  emulation::run(config->gridDim.x, config->blockDim.x, together, [&] { kernel(args); });
  return cudaSuccess;
}
