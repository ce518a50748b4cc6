// The k largest of numbers that are spread over the blocks of a grid in order of their indices: histograms of 8 bits at
// a time find the k-th; of numbers equal to it the lower indices belong to the k.
#pragma once

#include "common.cuh"

namespace sparsesteer::cuda {

constexpr int kDigits = 256;
constexpr int kDigitBits = 8;
constexpr int kPasses = 32 / kDigitBits;

// Unsigned numbers in the order of the floats; both zeros are one number.
__device__ inline unsigned ordered_key(float v) {
  const unsigned bits = v == 0.0f ? 0u : __float_as_uint(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The k-th largest key of a token, and how many of those equal to it belong to the k.
struct Border {
  unsigned key;
  int wanted, equal;
};

// One warp adds up how often each digit occurs among the keys that agree with the border in all higher digits.
__device__ inline void count_digits(const float* z, int count, int pass, Border border, int* histogram) {
  const int shift = 32 - kDigitBits * (pass + 1);
  for (int first = 0; first < count; first += kWarp) {
    const int i = first + lane_id();
    const unsigned key = i < count ? ordered_key(z[i]) : 0u;
    const bool counts = i < count && (pass == 0 || key >> (shift + kDigitBits) == border.key >> (shift + kDigitBits));
    const int digit = counts ? int((key >> shift) % unsigned(kDigits)) : -1;
    const unsigned same = __match_any_sync(kAllLanes, digit);  // the first digits are nearly all alike
    if (counts && __ffs(int(same)) - 1 == lane_id()) atomicAdd(&histogram[digit], __popc(same));
  }
}

// One warp finds the border's next digit in the histogram of all blocks.
__device__ inline void narrow(const int* histogram, int pass, Border& border) {
  constexpr int kPerLane = kDigits / kWarp;
  const int top = kDigits - 1 - lane_id() * kPerLane;  // lane 0 has the largest digits
  int counts[kPerLane], sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) counts[i] = histogram[top - i], sum += counts[i];
  int larger = warp_prefix_sum(sum) - sum;
  const Border before = border;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (larger < before.wanted && before.wanted <= larger + counts[i])
      border = {before.key | unsigned(top - i) << (32 - kDigitBits * (pass + 1)), before.wanted - larger, counts[i]};
    larger += counts[i];
  }
  __syncwarp();
}

// What all blocks share; in global memory.
template <int TOKENS>
struct SelectionScratch {
  int* histograms;  // [kPasses, TOKENS, kDigits]
  int* equals;      // [TOKENS, blocks] numbers equal to the border, of each block

  __host__ __device__ SelectionScratch(Carver& scratch, int blocks)
      : histograms(scratch.take<int>(kPasses * TOKENS * kDigits)), equals(scratch.take<int>(TOKENS * blocks)) {}
};

// What a block knows; in shared memory.
template <int TOKENS>
struct Selection {
  Border borders[TOKENS];
  int takes[TOKENS];  // how many numbers equal to the border this block may keep
  int histogram[TOKENS][kDigits];

  // True if number i of this block, of those in z, is among the token's k largest.
  __device__ bool has(int token, const float* z, int i) const {
    const Border border = borders[token];
    const unsigned key = ordered_key(z[i]);
    if (key != border.key) return key > border.key;
    int left = takes[token];
    if (left >= border.equal) return true;
    for (int lower = 0; lower < i && left > 0; ++lower) left -= ordered_key(z[lower]) == border.key;
    return left > 0;
  }
};

// The borders, the same in all blocks. z: [TOKENS, stride] in shared memory, `count` of each row are numbers.
template <int TOKENS>
__device__ inline void find_borders(Selection<TOKENS>& s, const SelectionScratch<TOKENS>& scratch, const float* z,
                                    int count, int stride, int k) {
  if (threadIdx.x < TOKENS) s.borders[threadIdx.x] = {0u, k, 0};
  for (int pass = 0; pass < kPasses; ++pass) {
    int* everyones = scratch.histograms + pass * TOKENS * kDigits;
    for (int i = threadIdx.x; i < TOKENS * kDigits; i += blockDim.x) s.histogram[i / kDigits][i % kDigits] = 0;
    __syncthreads();
    for (int t = warp_id(); t < TOKENS; t += warps_of_block())
      count_digits(z + t * stride, count, pass, s.borders[t], s.histogram[t]);
    __syncthreads();
    for (int i = threadIdx.x; i < TOKENS * kDigits; i += blockDim.x) {
      const int mine = s.histogram[i / kDigits][i % kDigits];
      if (mine > 0) atomicAdd(&everyones[i], mine);
    }
    wait_for_all_blocks();
    for (int t = warp_id(); t < TOKENS; t += warps_of_block()) narrow(everyones + t * kDigits, pass, s.borders[t]);
    __syncthreads();
  }
}

// How many numbers equal to the border this block may keep: what the blocks before it leave.
template <int TOKENS>
__device__ inline void share_equals(Selection<TOKENS>& s, const SelectionScratch<TOKENS>& scratch, const float* z,
                                    int count, int stride) {
  bool split = false;
  for (int t = 0; t < TOKENS; ++t) split |= s.borders[t].wanted < s.borders[t].equal;
  if (split) {  // the same in all blocks
    for (int t = warp_id(); t < TOKENS; t += warps_of_block()) {
      int equal = 0;
      for (int i = lane_id(); i < count; i += kWarp) equal += ordered_key(z[t * stride + i]) == s.borders[t].key;
      equal = warp_sum(equal);
      if (lane_id() == 0) scratch.equals[t * gridDim.x + blockIdx.x] = equal;
    }
    wait_for_all_blocks();
  }
  for (int t = warp_id(); t < TOKENS; t += warps_of_block()) {
    int before = 0;
    if (split)
      for (int block = lane_id(); block < int(blockIdx.x); block += kWarp)
        before += scratch.equals[t * gridDim.x + block];
    before = warp_sum(before);
    if (lane_id() == 0) s.takes[t] = s.borders[t].wanted - before;
  }
  __syncthreads();
}

template <int TOKENS>
__device__ inline void select_largest(Selection<TOKENS>& s, const SelectionScratch<TOKENS>& scratch, const float* z,
                                      int count, int stride, int k) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < kPasses * TOKENS * kDigits; i += gridDim.x * blockDim.x)
    scratch.histograms[i] = 0;
  wait_for_all_blocks();
  find_borders(s, scratch, z, count, stride, k);
  share_equals(s, scratch, z, count, stride);
}

}  // namespace sparsesteer::cuda
