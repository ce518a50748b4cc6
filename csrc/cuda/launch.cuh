// Launching a kernel that takes one struct.
#pragma once

#include <type_traits>

#include "common.cuh"

namespace sparsesteer::cuda {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

inline size_t most_shared_bytes() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// together: all blocks run at once, so that they can wait for each other; the launch fails if they do not fit.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), int blocks, int threads, size_t shared_bytes, bool together,
                   cudaStream_t stream, const Args& args) {
  constexpr size_t kSharedWithoutAsking = 48 << 10;
  if (shared_bytes > kSharedWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = together ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args);
}

// Calls run with the number of tokens, at most kMostStreamTokens, rounded up to one that kernels are compiled for.
template <typename Run>
auto with_token_count(int n, Run run) {
  if (n <= 1) return run(std::integral_constant<int, 1>());
  if (n <= 2) return run(std::integral_constant<int, 2>());
  if (n <= 4) return run(std::integral_constant<int, 4>());
  return run(std::integral_constant<int, kMostStreamTokens>());
}

}  // namespace sparsesteer::cuda
