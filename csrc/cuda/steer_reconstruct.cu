// steer_reconstruct for a few tokens in one launch: blocks own ranges of features. They stream the encoder by once and
// keep z of their range in shared memory, agree on the border of the k largest where there is a k, edit their codes and
// decode them; then they share the columns and add up each other's parts. Nothing of size N x F leaves shared memory.
#include "expand.cuh"
#include "launch.cuh"
#include "select.cuh"
#include "stream.cuh"

namespace sparsesteer::cuda {

namespace {

template <int TOKENS>
struct Scratch {
  SelectionScratch<TOKENS> selection;
  float* weights;  // [TOKENS, blocks] 1 for blocks with codes of a token
  float* parts;    // [blocks, TOKENS, padded d_out] their share of the reconstruction
  int64_t part_stride;
  KeptNorms norms;
  size_t bytes;

  __host__ __device__ Scratch(const ReconstructArgs& a, int blocks) : Scratch(a, blocks, Carver(a.scratch)) {}
  __host__ __device__ Scratch(const ReconstructArgs& a, int blocks, Carver&& carver)
      : selection(carver, blocks),
        weights(carver.take<float>(TOKENS * blocks)),
        parts(carver.take<float>(int64_t(blocks) * TOKENS * round_up(a.tokens.d_out, kChunk))),
        part_stride(round_up(a.tokens.d_out, kChunk)),
        norms(carver, a.tokens, a.preserve_norm),
        bytes(carver.bytes()) {}
};

template <int TOKENS>
struct Shared {
  Moments moments[TOKENS];
  float input_scales[TOKENS];
  Selection<TOKENS> selection;
  int codes[TOKENS];
  Expansion expansion;
};

template <int TOKENS>
struct Layout {
  Shared<TOKENS>* shared;
  float* z;        // [TOKENS, range]
  float* x;        // staged
  float* values;   // [TOKENS, range] codes, in the place of x
  int32_t* index;  // [TOKENS, range] their features, in the place of z
  size_t bytes;

  __host__ __device__ Layout(const ReconstructArgs& a, int blocks, void* memory) {
    const int64_t range = ceil_div(a.f, blocks), staged = StagedInput<TOKENS>::floats(a.tokens.d);
    Carver carver(memory);
    shared = carver.take<Shared<TOKENS>>(1);
    z = carver.take<float>(TOKENS * range);
    x = carver.take<float>(staged > TOKENS * range ? staged : TOKENS * range);
    values = x;
    index = reinterpret_cast<int32_t*>(z);
    bytes = carver.bytes();
  }
};

// z of this block's features.
template <int TOKENS, typename R>
__device__ inline void encode(const ReconstructArgs& a, const Shared<TOKENS>& s, const StagedInput<TOKENS>& x,
                              Range own, int range, float* z) {
  for (int first = own.begin + warp_id() * kRowsOfWarp; first < own.end; first += warps_of_block() * kRowsOfWarp) {
    const R* rows[kRowsOfWarp];
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r)
      rows[r] = static_cast<const R*>(a.encoder) + int64_t(min(first + r, own.end - 1)) * a.tokens.d;
    const float product = warp_products<TOKENS>(rows, x, a.tokens.d);
    const int feature = first + lane_id() / TOKENS, t = lane_id() % TOKENS;
    if (lane_id() >= kRowsOfWarp * TOKENS || feature >= own.end) continue;
    z[t * range + feature - own.begin] = fmaf(product, s.input_scales[t], a.table[int64_t(feature) * N_COLUMNS + BIAS]);
  }
  __syncthreads();
}

// The edited codes of this block's range, 0 where nothing is active.
template <int TOKENS>
__device__ inline void activate_and_edit(const ReconstructArgs& a, const Shared<TOKENS>& s, Range own, int range,
                                         bool selects, const float* z, float* values) {
  const int count = own.end - own.begin;
  for (int i = threadIdx.x; i < TOKENS * count; i += blockDim.x) {
    const int t = i / count, place = i % count;
    const bool kept = !selects || s.selection.has(t, z + t * range, place);
    const float* row = a.table + int64_t(own.begin + place) * N_COLUMNS;
    values[t * range + place] = kept ? activate(z[t * range + place], row) : 0.0f;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < TOKENS * a.m; i += blockDim.x) {
    const int64_t feature = a.features[i % a.m];
    if (feature < own.begin || feature >= own.end) continue;
    float& value = values[i / a.m * range + feature - own.begin];
    const float* row = a.rows + int64_t(i % a.m) * N_COLUMNS;
    if (value != 0.0f) value += edit_delta(value, row) - edit_delta(0.0f, row);
  }
  __syncthreads();
}

// Moves the codes that are not 0 to the front, in the order of their features; a warp for each token.
template <int TOKENS>
__device__ inline void compact(Shared<TOKENS>& s, Range own, int range, float* values, int32_t* index) {
  for (int t = warp_id(); t < TOKENS; t += warps_of_block()) {
    int kept = 0;
    for (int first = 0; first < own.end - own.begin; first += kWarp) {
      const int i = first + lane_id();
      const float value = i < own.end - own.begin ? values[t * range + i] : 0.0f;
      const unsigned live = __ballot_sync(kAllLanes, value != 0.0f);  // and all lanes have read before one writes
      const int at = t * range + kept + __popc(live & lanes_below(lane_id()));
      if (value != 0.0f) values[at] = value, index[at] = own.begin + i;
      kept += __popc(live);
    }
    if (lane_id() == 0) s.codes[t] = kept;
  }
  __syncthreads();
}

// This block's share of the reconstruction, and a note whether there is one.
template <int TOKENS, typename R>
__device__ inline void decode(const ReconstructArgs& a, const Shared<TOKENS>& s, const Scratch<TOKENS>& scratch,
                              int range, const float* values, const int32_t* index) {
  const int width = a.tokens.d_out;
  for (int t = 0; t < a.tokens.n; ++t) {
    const int codes = s.codes[t];
    if (threadIdx.x == 0) scratch.weights[t * gridDim.x + blockIdx.x] = codes > 0 ? 1.0f : 0.0f;
    float* part = scratch.parts + (int64_t(blockIdx.x) * TOKENS + t) * scratch.part_stride;
    for (int c = int(threadIdx.x) * kChunk; c < width && codes > 0; c += blockDim.x * kChunk) {
      float sums[kChunk] = {}, row[kChunk];
#pragma unroll 4
      for (int i = 0; i < codes; ++i) {
        const R* source = static_cast<const R*>(a.decoder) + int64_t(index[t * range + i]) * width;
        load_chunk(source, c, width, a.decoder_aligned, row);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) sums[e] = fmaf(values[t * range + i], row[e], sums[e]);
      }
#pragma unroll
      for (int e = 0; e < kChunk; ++e) part[c + e] = sums[e];
    }
  }
}

template <int TOKENS>
__device__ inline void write_tokens(const ReconstructArgs& a, Shared<TOKENS>& s, const Scratch<TOKENS>& scratch) {
  const int width = a.tokens.d_out, slices = ceil_div(width, kSlice);
  for (int job = blockIdx.x; job < a.tokens.n * slices; job += gridDim.x) {
    const int token = job / slices, slice = job % slices, column = slice * kSlice + lane_id();
    const WeightedRows<float> rows = {scratch.parts + token * scratch.part_stride,
                                      TOKENS * scratch.part_stride,
                                      true,
                                      nullptr,
                                      int(gridDim.x),
                                      scratch.weights,
                                      int64_t(gridDim.x)};
    expand(rows, &token, 1, slice, int(scratch.part_stride), s.expansion);
    if (warp_id() > 0) continue;
    float out = sum_of(s.expansion, 0).column, into = 0.0f;
    if (column < width) out += a.bias[column], into = load_into(a.tokens, token, column);
    const Moments x = s.moments[token];
    if (a.input_norm == int(InputNorm::LAYER_NORM)) out = fmaf(out, deviation_of(x, a.tokens.d), x.mean);
    if (a.input_norm == int(InputNorm::CONSTANT_NORM)) out *= norm_of(x, a.tokens.d) / sqrtf(float(a.tokens.d));
    write_slice(a.tokens, token, slice, out - into, true, a.preserve_norm, scratch.norms);
  }
}

template <int TOKENS, typename R>
__global__ void __launch_bounds__(kStreamThreads, 1) steer_reconstruct_kernel(const ReconstructArgs a) {
  const Layout<TOKENS> layout(a, gridDim.x, dynamic_shared_memory());
  Shared<TOKENS>& s = *layout.shared;
  const Scratch<TOKENS> scratch(a, gridDim.x);
  const Range own = own_features(a.f);
  const int range = ceil_div(a.f, gridDim.x), count = own.end - own.begin;
  const bool selects = 0 < a.k && a.k < a.f;
  StagedInput<TOKENS> x(layout.x, a.tokens.d);
  x.stage(a.tokens, a.x_aligned);
  x.moments(scales_by_moments(a.input_norm, int(OutputScale::ONE)), s.moments);
  if (threadIdx.x < TOKENS) s.input_scales[threadIdx.x] = input_scale(s.moments[threadIdx.x], a.tokens.d, a.input_norm);
  __syncthreads();
  encode<TOKENS, R>(a, s, x, own, range, layout.z);
  if (selects) select_largest(s.selection, scratch.selection, layout.z, count, range, a.k);
  activate_and_edit(a, s, own, range, selects, layout.z, layout.values);
  compact(s, own, range, layout.values, layout.index);
  decode<TOKENS, R>(a, s, scratch, range, layout.values, layout.index);
  wait_for_all_blocks();
  write_tokens(a, s, scratch);
  if (!a.preserve_norm) return;
  wait_for_all_blocks();
  finish(a.tokens, scratch.norms);
}

template <int TOKENS, typename R>
cudaError_t launch_with(ReconstructArgs a, cudaStream_t stream) {
  const int blocks = multiprocessors();
  a.x_aligned = x_in_chunks(a.tokens);
  a.decoder_aligned = in_chunks(a.decoder, a.tokens.d_out, a.tokens.d_out, sizeof(R));
  const size_t bytes = Layout<TOKENS>(a, blocks, nullptr).bytes;
  return launch(steer_reconstruct_kernel<TOKENS, R>, blocks, kStreamThreads, bytes, true, stream, a);
}

}  // namespace

bool steer_reconstruct_fits(const ReconstructArgs& a) {
  return with_token_count(a.tokens.n, [&](auto tokens) {
    return Layout<decltype(tokens)::value>(a, multiprocessors(), nullptr).bytes <= most_shared_bytes();
  });
}

size_t steer_reconstruct_scratch_bytes(const ReconstructArgs& args) {
  ReconstructArgs a = args;
  a.scratch = nullptr;
  return with_token_count(a.tokens.n,
                          [&](auto tokens) { return Scratch<decltype(tokens)::value>(a, multiprocessors()).bytes; });
}

cudaError_t steer_reconstruct(const ReconstructArgs& a, cudaStream_t stream) {
  return with_token_count(a.tokens.n, [&](auto tokens) {
    constexpr int kTokens = decltype(tokens)::value;
    return a.row_type == Scalar::FLOAT ? launch_with<kTokens, float>(a, stream)
                                       : launch_with<kTokens, __nv_bfloat16>(a, stream);
  });
}

}  // namespace sparsesteer::cuda
