// steer_topk for a few tokens in one launch. Nothing is selected: an edited feature is active iff fewer than k features
// come before it, so its pre-activation is computed first, and then the encoder streams by once and every block counts.
// A token without a positive edited pre-activation needs no count; if no token does, the encoder is not read.
#include "expand.cuh"
#include "launch.cuh"
#include "stream.cuh"

namespace sparsesteer::cuda {

namespace {

struct Scratch {
  float* z;     // [n, m] pre-activations of the edited features
  int* before;  // [n, m] how many features come before each
  KeptNorms norms;
  size_t bytes;

  __host__ __device__ explicit Scratch(const TopkArgs& a) : Scratch(a, Carver(a.scratch)) {}
  __host__ __device__ Scratch(const TopkArgs& a, Carver&& carver)
      : z(carver.take<float>(int64_t(a.tokens.n) * a.m)),
        before(carver.take<int>(int64_t(a.tokens.n) * a.m)),
        norms(carver, a.tokens, a.preserve_norm),
        bytes(carver.bytes()) {}
};

// The edited features of a token that may be active.
struct Candidates {
  float* z;      // [TOKENS, m]
  int* feature;  // [TOKENS, m]
  int* place;    // [TOKENS, m], j of the edited feature
  int* before;   // [TOKENS, m], counted by this block
};

template <int TOKENS>
struct Shared {
  Moments moments[TOKENS];
  float input_scales[TOKENS];
  int candidates[TOKENS];
  Expansion expansion;
};

template <int TOKENS>
struct Layout {
  Shared<TOKENS>* shared;
  float* x;
  Candidates candidates;
  float* deltas;  // [TOKENS, m]
  size_t bytes;

  __host__ __device__ Layout(const TopkArgs& a, void* memory) {
    Carver carver(memory);
    shared = carver.take<Shared<TOKENS>>(1);
    x = carver.take<float>(StagedInput<TOKENS>::floats(a.tokens.d));
    candidates.z = carver.take<float>(TOKENS * a.m), candidates.feature = carver.take<int>(TOKENS * a.m);
    candidates.place = carver.take<int>(TOKENS * a.m), candidates.before = carver.take<int>(TOKENS * a.m);
    deltas = candidates.z;  // when all is counted, the candidates are not needed any more
    bytes = carver.bytes();
  }
};

// Lane r * TOKENS + t has z of edited feature j + r for token t.
template <int TOKENS>
__device__ inline void keep_edited(const TopkArgs& a, const Scratch& scratch, int j, float z) {
  const int r = lane_id() / TOKENS, t = lane_id() % TOKENS;
  if (r >= kRowsOfWarp || j + r >= a.m || t >= a.tokens.n) return;
  scratch.z[t * a.m + j + r] = z;
  scratch.before[t * a.m + j + r] = 0;
}

// Lane r * TOKENS + t has z of feature first + r for token t; `rows` of them count.
template <int TOKENS>
__device__ inline void count_candidates(const TopkArgs& a, const Shared<TOKENS>& s, const Candidates& c, int first,
                                        int rows, float mine) {
  for (int pair = 0; pair < rows * TOKENS; ++pair) {
    const float z = __shfl_sync(kAllLanes, mine, pair);
    const int feature = first + pair / TOKENS, t = pair % TOKENS;
    for (int i = t * a.m + lane_id(); i < t * a.m + s.candidates[t]; i += kWarp)
      if (z > c.z[i] || (z == c.z[i] && feature < c.feature[i])) atomicAdd(&c.before[i], 1);
  }
}

// A warp for each token lists the edited features with z > 0. Returns how many there are, over all tokens.
template <int TOKENS>
__device__ inline int list_candidates(const TopkArgs& a, const Scratch& scratch, const Candidates& c,
                                      Shared<TOKENS>& s) {
  for (int t = warp_id(); t < TOKENS; t += warps_of_block()) {
    int count = 0;
    for (int first = 0; first < a.m && t < a.tokens.n && strength_of(a.tokens, t) != 0.0f; first += kWarp) {
      const int j = first + lane_id();
      const float z = j < a.m ? scratch.z[t * a.m + j] : 0.0f;
      const unsigned positive = __ballot_sync(kAllLanes, z > 0.0f);
      const int at = t * a.m + count + __popc(positive & lanes_below(lane_id()));
      if (z > 0.0f) c.z[at] = z, c.feature[at] = int(a.features[j]), c.place[at] = j, c.before[at] = 0;
      count += __popc(positive);
    }
    if (lane_id() == 0) s.candidates[t] = count;
  }
  __syncthreads();
  int all = 0;
  for (int t = 0; t < TOKENS; ++t) all += s.candidates[t];
  return all;
}

// What this block counted goes to all.
template <int TOKENS>
__device__ inline void add_counts(const TopkArgs& a, const Shared<TOKENS>& s, const Candidates& c,
                                  const Scratch& scratch) {
  __syncthreads();
  for (int t = 0; t < TOKENS; ++t)
    for (int i = t * a.m + threadIdx.x; i < t * a.m + s.candidates[t]; i += blockDim.x)
      if (c.before[i] > 0) atomicAdd(&scratch.before[t * a.m + c.place[i]], c.before[i]);
}

// First the edited features, shared by all warps of the grid; then, if a token needs it, all features, each block its
// own range. Both in one loop, so that a feature gets the same bits both times.
template <int TOKENS, typename R>
__device__ inline void encode_and_count(const TopkArgs& a, const StagedInput<TOKENS>& x, Shared<TOKENS>& s,
                                        const Candidates& candidates, const Scratch& scratch) {
  const Range everyone = {int(blockIdx.x) * warps_of_block() * kRowsOfWarp, a.m}, own = own_features(a.f);
  for (int pass = 0; pass < 2; ++pass) {
    const bool counting = pass == 1;
    const Range range = counting ? own : everyone;
    const int step = (counting ? 1 : gridDim.x) * warps_of_block() * kRowsOfWarp;
    for (int first = range.begin + warp_id() * kRowsOfWarp; first < range.end; first += step) {
      const R* rows[kRowsOfWarp];
      float bias = 0.0f;
#pragma unroll
      for (int r = 0; r < kRowsOfWarp; ++r) {
        const int place = min(first + r, range.end - 1);
        const int64_t feature = counting ? place : a.features[place];
        rows[r] = static_cast<const R*>(a.encoder) + feature * a.tokens.d;
        if (lane_id() / TOKENS == r) bias = a.encoder_bias[feature * a.encoder_bias_stride];
      }
      const float z = fmaf(warp_products<TOKENS>(rows, x, a.tokens.d), s.input_scales[lane_id() % TOKENS], bias);
      if (counting)
        count_candidates(a, s, candidates, first, min(kRowsOfWarp, range.end - first), z);
      else
        keep_edited<TOKENS>(a, scratch, first, z);
    }
    if (counting) add_counts(a, s, candidates, scratch);
    wait_for_all_blocks();
    if (!counting && list_candidates(a, scratch, candidates, s) == 0) return;
  }
}

// The changes of all activations, by every block for itself.
__device__ inline void edit_features(const TopkArgs& a, const Scratch& scratch, float* deltas) {
  for (int i = threadIdx.x; i < a.tokens.n * a.m; i += blockDim.x) {
    const float* row = a.rows + int64_t(i % a.m) * N_COLUMNS;
    const float z = scratch.z[i];
    deltas[i] = edit_delta(z > 0.0f && scratch.before[i] < a.k ? activate(z, row) : 0.0f, row);
  }
  __syncthreads();
}

template <int TOKENS, typename R>
__device__ inline void write_tokens(const TopkArgs& a, Shared<TOKENS>& s, const float* deltas, const KeptNorms& norms) {
  const int slices = ceil_div(a.tokens.d_out, kSlice), groups = ceil_div(a.tokens.n, kGroup);
  const WeightedRows<R> rows = {
      static_cast<const R*>(a.decoder), a.tokens.d_out, a.decoder_aligned, nullptr, a.m, deltas, a.m};
  for (int job = blockIdx.x; job < groups * slices; job += gridDim.x) {
    const int first = job / slices * kGroup, slice = job % slices, t = warp_id();
    const int n = min(kGroup, a.tokens.n - first), tokens[kGroup] = {first, first + 1, first + 2, first + 3};
    expand(rows, tokens, n, slice, a.tokens.d_out, s.expansion);
    if (t >= n) continue;
    const Sum sum = sum_of(s.expansion, t);
    const int column = slice * kSlice + lane_id();
    const float bias = a.delta_bias && column < a.tokens.d_out ? a.delta_bias[column] : 0.0f;
    const float scale = a.scale_rule == int(OutputScale::GAP_FILL)
                            ? (sum.weight != 0.0f ? a.gap / sum.weight : 0.0f)
                            : output_scale(s.moments[first + t], a.tokens.d, a.scale_rule);
    write_slice(a.tokens, first + t, slice, (sum.column + bias) * scale, sum.any || a.delta_bias, a.preserve_norm,
                norms);
  }
}

template <int TOKENS, typename R>
__global__ void __launch_bounds__(kStreamThreads, 1) steer_topk_kernel(const TopkArgs a) {
  const Layout<TOKENS> layout(a, dynamic_shared_memory());
  Shared<TOKENS>& s = *layout.shared;
  const Scratch scratch(a);
  StagedInput<TOKENS> x(layout.x, a.tokens.d);
  x.stage(a.tokens, a.x_aligned);
  x.moments(scales_by_moments(a.input_norm, a.scale_rule), s.moments);
  if (threadIdx.x < TOKENS) s.input_scales[threadIdx.x] = input_scale(s.moments[threadIdx.x], a.tokens.d, a.input_norm);
  __syncthreads();
  encode_and_count<TOKENS, R>(a, x, s, layout.candidates, scratch);
  edit_features(a, scratch, layout.deltas);
  write_tokens<TOKENS, R>(a, s, layout.deltas, scratch.norms);
  if (!a.preserve_norm) return;
  wait_for_all_blocks();
  finish(a.tokens, scratch.norms);
}

template <int TOKENS, typename R>
cudaError_t launch_with(TopkArgs a, cudaStream_t stream) {
  const Tokens& t = a.tokens;
  a.x_aligned = x_in_chunks(t);
  a.decoder_aligned = in_chunks(a.decoder, t.d_out, t.d_out, sizeof(R));
  const size_t bytes = Layout<TOKENS>(a, nullptr).bytes;
  return launch(steer_topk_kernel<TOKENS, R>, multiprocessors(), kStreamThreads, bytes, true, stream, a);
}

}  // namespace

bool steer_topk_fits(const TopkArgs& a) {
  return with_token_count(a.tokens.n, [&](auto tokens) {
    return Layout<decltype(tokens)::value>(a, nullptr).bytes <= most_shared_bytes();
  });
}

size_t steer_topk_scratch_bytes(const TopkArgs& args) {
  TopkArgs a = args;
  a.scratch = nullptr;
  return Scratch(a).bytes;
}

cudaError_t steer_topk(const TopkArgs& a, cudaStream_t stream) {
  return with_token_count(a.tokens.n, [&](auto tokens) {
    constexpr int kTokens = decltype(tokens)::value;
    return a.row_type == Scalar::FLOAT ? launch_with<kTokens, float>(a, stream)
                                       : launch_with<kTokens, __nv_bfloat16>(a, stream);
  });
}

}  // namespace sparsesteer::cuda
