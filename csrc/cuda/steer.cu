// steer and steer_slots for a few tokens, in one launch: blocks share the edited rows of the encoder, wait for each
// other, and then share the columns of the output.
//
// Waiting costs about as much as encoding a handful of rows again from L2; where a call has no more than that, every
// block encodes for itself and none waits. That choice is arithmetic: it has not been measured on a GPU.
#include "groups.cuh"
#include "launch.cuh"

namespace sparsesteer::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 2;

struct Scratch {
  float* deltas;  // [n, entries]
  float* scales;  // [n], r
  KeptNorms norms;
  size_t bytes;

  __host__ __device__ explicit Scratch(const EditArgs& a) : Scratch(a, Carver(a.scratch)) {}
  __host__ __device__ Scratch(const EditArgs& a, Carver&& carver)
      : deltas(carver.take<float>(int64_t(a.tokens.n) * a.entries)),
        scales(carver.take<float>(a.tokens.n)),
        norms(carver, a.tokens, a.preserve_norm),
        bytes(carver.bytes()) {}
};

struct Shared {
  Groups groups;
  float input_scales[kGroup], output_scales[kGroup];
  float parts[kThreads / kWarp][kRowsTogether * kGroup];
  float alone_deltas[kGroup * kRowsTogether], alone_scales[kGroup];
  Expansion expansion;
};

template <typename T>
__device__ inline void load_x(const EditArgs& a, int token, int c, float (&v)[kChunk]) {
  const Tokens& tokens = a.tokens;
  load_chunk(static_cast<const T*>(tokens.x) + token * tokens.x_stride, c, tokens.d, a.x_aligned, v);
  if (!tokens.residual) return;
  float added[kChunk];
  load_chunk(static_cast<const T*>(tokens.residual) + token * tokens.residual_stride, c, tokens.d, a.x_aligned, added);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] += added[i];
}

// u and r of a group's tokens, a warp for each token.
template <typename T>
__device__ inline void scale_tokens(const EditArgs& a, const Group& group, Shared& s) {
  const int t = warp_id(), d = a.tokens.d;
  if (t < group.size) {
    Moments moments = {};
    if (scales_by_moments(a.input_norm, a.scale_rule))
      moments =
          warp_moments(d, [&](int chunk, float (&v)[kChunk]) { load_x<T>(a, group.tokens[t], chunk * kChunk, v); });
    s.input_scales[t] = input_scale(moments, d, a.input_norm);
    s.output_scales[t] = output_scale(moments, d, a.scale_rule);
  }
  __syncthreads();
}

// Products of ROWS entries from `entry` on with the group's tokens: s.parts[warp][r * kGroup + t] add up to them. The
// order of a sum depends on the width alone, so that a token's bits do not depend on its company.
template <int ROWS, typename T, typename R>
__device__ inline void multiply(const EditArgs& a, const Group& group, int entry, Shared& s) {
  const int d = a.tokens.d;
  const R* rows[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int mine = group.first + min(entry + r, group.count - 1);
    rows[r] = static_cast<const R*>(a.encoder) + int64_t(a.entry_row ? a.entry_row[mine] : mine) * d;
  }
  float sums[ROWS][kGroup] = {};
  for (int c = int(threadIdx.x) * kChunk; c < d; c += kThreads * kChunk) {
    float e[ROWS][kChunk], x[kChunk];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) load_chunk(rows[r], c, d, a.encoder_aligned, e[r]);
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      if (t >= group.size) continue;
      load_x<T>(a, group.tokens[t], c, x);
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sums[r][t] = fmaf(e[r][i], x[i], sums[r][t]);
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      if (t >= group.size) continue;
      const float sum = warp_sum(sums[r][t]);
      if (lane_id() == 0) s.parts[warp_id()][r * kGroup + t] = sum;
    }
}

// This block's share of all jobs: ROWS entries of a group each, from x to the changes of activations.
template <int ROWS, typename T, typename R>
__device__ inline void shrink(const EditArgs& a, Shared& s, float* deltas, float* scales) {
  const int step = a.alone ? 1 : gridDim.x;
  int g = 0, scaled = -1;
  for (int job = a.alone ? 0 : blockIdx.x; job < s.groups.jobs; job += step) {
    while (job >= s.groups.group[g].jobs_end) ++g;
    const Group& group = s.groups.group[g];
    const int entry = (job - group.jobs_begin) * ROWS;
    if (group.count > 0) multiply<ROWS, T, R>(a, group, entry, s);
    if (g != scaled) scale_tokens<T>(a, group, s);
    scaled = g;
    __syncthreads();
    const int r = int(threadIdx.x) / kGroup, t = int(threadIdx.x) % kGroup;
    if (r < ROWS && t < group.size && entry + r < group.count) {
      float product = 0.0f;
      for (int warp = 0; warp < kThreads / kWarp; ++warp) product += s.parts[warp][r * kGroup + t];
      const float* row = a.rows + int64_t(group.first + entry + r) * N_COLUMNS;
      const float z = fmaf(product, s.input_scales[t], row[BIAS]);
      deltas[int64_t(group.tokens[t]) * a.entries + entry + r] = edit_delta(activate(z, row), row);
    }
    if (entry == 0 && r == 0 && t < group.size) scales[group.tokens[t]] = s.output_scales[t];
    __syncthreads();  // what is shared serves the next job
  }
}

template <typename R>
__device__ inline void write_groups(const EditArgs& a, Shared& s, const float* deltas, const float* scales,
                                    const KeptNorms& norms) {
  const int slices = ceil_div(a.tokens.d_out, kSlice);
  for (int job = blockIdx.x; job < s.groups.count * slices; job += gridDim.x) {
    const Group& group = s.groups.group[job / slices];
    const int slice = job % slices, t = warp_id();
    const R* decoder = static_cast<const R*>(a.decoder) + (a.entry_row ? 0 : int64_t(group.first) * a.tokens.d_out);
    const WeightedRows<R> rows = {
        decoder,     a.tokens.d_out, a.decoder_aligned, a.entry_row ? a.entry_row + group.first : nullptr,
        group.count, deltas,         a.entries};
    expand(rows, group.tokens, group.size, slice, a.tokens.d_out, s.expansion);
    if (t >= group.size) continue;
    const int token = group.tokens[t], column = slice * kSlice + lane_id();
    const Sum sum = sum_of(s.expansion, t);
    const bool changes = sum.any || group.bias >= 0;
    float change = sum.column;
    if (group.bias >= 0 && column < a.tokens.d_out) change += a.bias[int64_t(group.bias) * a.tokens.d_out + column];
    if (a.scale_rule == int(OutputScale::GAP_FILL))
      change *= sum.weight != 0.0f ? a.gap / sum.weight : 0.0f;
    else if (changes)
      change *= scales[token];
    write_slice(a.tokens, token, slice, change, changes, a.preserve_norm, norms);
  }
}

template <typename T, typename R>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) edit_kernel(const EditArgs a) {
  Shared& s = *static_cast<Shared*>(dynamic_shared_memory());
  const Scratch scratch(a);
  float* deltas = a.alone ? s.alone_deltas : scratch.deltas;
  float* scales = a.alone ? s.alone_scales : scratch.scales;
  if (warp_id() == 0) form_groups(a, s.groups);
  __syncthreads();
  if (s.groups.rows_together == kRowsTogether)
    shrink<kRowsTogether, T, R>(a, s, deltas, scales);
  else
    shrink<1, T, R>(a, s, deltas, scales);
  if (!a.alone) wait_for_all_blocks();
  write_groups<R>(a, s, deltas, scales, scratch.norms);
  if (!a.preserve_norm) return;
  wait_for_all_blocks();
  finish(a.tokens, scratch.norms);
}

// True if a write to out could change what another block still reads.
bool overwrites_input(const Tokens& a) {
  const int bytes = a.type == Scalar::FLOAT ? 4 : 2;
  const auto overlaps = [&](const void* input, int64_t stride) {
    const auto begin = reinterpret_cast<uintptr_t>(a.out), from = reinterpret_cast<uintptr_t>(input);
    const uintptr_t end = begin + ((a.n - 1) * a.out_stride + a.d_out) * bytes;
    return input && begin < from + ((a.n - 1) * stride + a.d) * bytes && from < end;
  };
  return overlaps(a.x, a.x_stride) || overlaps(a.residual, a.residual_stride);
}

template <typename T, typename R>
cudaError_t launch_edit(EditArgs a, cudaStream_t stream) {
  const Tokens& t = a.tokens;
  a.x_aligned = x_in_chunks(t);
  a.encoder_aligned = in_chunks(a.encoder, t.d, t.d, sizeof(R));
  a.decoder_aligned = in_chunks(a.decoder, t.d_out, t.d_out, sizeof(R));
  a.alone = !a.slot && t.n <= kGroup && a.entries <= kRowsTogether && !a.preserve_norm && !overwrites_input(t);
  const int slices = ceil_div(t.d_out, kSlice) * (a.slot ? t.n : ceil_div(t.n, kGroup));
  const int jobs = a.alone ? slices : max(slices, a.entries * (a.slot ? t.n : ceil_div(t.n, kGroup)));
  const int blocks = min(jobs, kBlocksPerMultiprocessor * multiprocessors());
  return launch(edit_kernel<T, R>, blocks, kThreads, sizeof(Shared), !a.alone, stream, a);
}

template <typename T>
cudaError_t with_rows(const EditArgs& a, cudaStream_t stream) {
  return a.row_type == Scalar::FLOAT ? launch_edit<T, float>(a, stream) : launch_edit<T, __nv_bfloat16>(a, stream);
}

}  // namespace

size_t edit_scratch_bytes(const EditArgs& args) {
  EditArgs a = args;
  a.scratch = nullptr;
  return Scratch(a).bytes;
}

cudaError_t edit(const EditArgs& args, cudaStream_t stream) {
  switch (args.tokens.type) {
    case Scalar::FLOAT: return with_rows<float>(args, stream);
    case Scalar::BFLOAT16: return with_rows<__nv_bfloat16>(args, stream);
    default: return with_rows<__half>(args, stream);
  }
}

}  // namespace sparsesteer::cuda
