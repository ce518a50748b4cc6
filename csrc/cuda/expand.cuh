// Weighted sums of rows for a slice of columns and a few tokens, by one block.
#pragma once

#include "write.cuh"

namespace sparsesteer::cuda {

constexpr int kGroup = 4;                     // tokens that share the loads of a row
constexpr int kLanesOfRow = kSlice / kChunk;  // threads side by side on a row's part of the slice
constexpr int kSums = kChunk + 2;             // of a thread and token: columns, all weights, weights that are not 0
constexpr int kMostWarps = 16;                // of a block

// What a block needs in shared memory for expand().
struct Expansion {
  float parts[kMostWarps][kGroup][kLanesOfRow][kSums];
};

// Rows and their weights: weights[token][j] belongs to row index[j], or to row j without an index.
template <typename R>
struct WeightedRows {
  const R* rows;
  int64_t stride;
  bool aligned;
  const int32_t* index;
  int count;
  const float* weights;
  int64_t weight_stride;
};

// The sums of one token, as lane `lane` of a warp that writes the slice sees them.
struct Sum {
  float column;  // sum_j weights[j] * row_j[slice * kSlice + lane]
  float weight;  // sum_j weights[j]
  bool any;      // true if a weight is not 0
};

// Leaves in shared memory what sum_of() puts together; all threads of the block take part.
template <typename R>
__device__ inline void expand(const WeightedRows<R>& a, const int* tokens, int n, int slice, int width,
                              Expansion& shared) {
  const int part = int(threadIdx.x) % kLanesOfRow, first = int(threadIdx.x) / kLanesOfRow;
  const int column = slice * kSlice + part * kChunk;
  float sums[kGroup][kSums] = {};
  for (int j = first; j < a.count; j += int(blockDim.x) / kLanesOfRow) {
    float weight[kGroup];
    bool any = false;
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      weight[t] = t < n ? a.weights[tokens[t] * a.weight_stride + j] : 0.0f;
      any |= weight[t] != 0.0f;
    }
    if (!any) continue;
    float row[kChunk] = {};
    if (column < width) load_chunk(a.rows + (a.index ? a.index[j] : j) * a.stride, column, width, a.aligned, row);
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      if (weight[t] == 0.0f) continue;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sums[t][i] = fmaf(weight[t], row[i], sums[t][i]);
      sums[t][kChunk] += weight[t];
      sums[t][kChunk + 1] += 1.0f;
    }
  }
  __syncthreads();  // the sums of the slice before have been read
#pragma unroll
  for (int t = 0; t < kGroup; ++t) {
    if (t >= n) continue;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
#pragma unroll
      for (int distance = kLanesOfRow; distance < kWarp; distance *= 2)
        sums[t][i] += __shfl_xor_sync(kAllLanes, sums[t][i], distance);
      if (lane_id() < kLanesOfRow) shared.parts[warp_id()][t][part][i] = sums[t][i];
    }
  }
  __syncthreads();
}

__device__ inline Sum sum_of(const Expansion& shared, int t) {
  Sum sum = {};
  float live = 0.0f;
  for (int warp = 0; warp < warps_of_block(); ++warp) {
    sum.column += shared.parts[warp][t][lane_id() / kChunk][lane_id() % kChunk];
    sum.weight += shared.parts[warp][t][0][kChunk];
    live += shared.parts[warp][t][0][kChunk + 1];
  }
  sum.any = live != 0.0f;
  return sum;
}

}  // namespace sparsesteer::cuda
