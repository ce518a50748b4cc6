// decode on CPU tensors.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../ops.h"
#include "code_spans.h"
#include "kernels.h"
#include "token_args.h"

namespace sparsesteer {

namespace {

constexpr int64_t kTileTokens = 128;  // for each thread, whose codes are read at a time
constexpr int64_t kGrain = 8;         // tokens that a thread reads at least

// Puts the codes of tokens into the form that kernels read.
template <typename C>
class Reader {
 public:
  Reader(int64_t k, int64_t f) : k(k), f(f) {}

  // codes: room for k.
  CodeSpan<C> read(const C* values, const int32_t* indices, Code<C>* codes) {
    Code<C>* end = codes;
    for (int64_t i = 0; i < k; ++i) {
      if (indices[i] < 0) continue;
      TORCH_CHECK(indices[i] < f, "decode: index ", indices[i], " is out of range, the decoder has ", f, " rows");
      *end++ = {values[i], indices[i]};
    }
    return {codes, are_many(end - codes, f) ? put_in_order(codes, end) : end};
  }

 private:
  // By rising index, those of the same index added up; gives the new end.
  Code<C>* put_in_order(Code<C>* codes, Code<C>* end) {
    sums.assign(f, C(0)), seen.assign(f, false);
    for (const Code<C>* code = codes; code < end; ++code) sums[code->index] += code->value, seen[code->index] = true;
    end = codes;
    for (int64_t index = 0; index < f; ++index)
      if (seen[index]) *end++ = {sums[index], int32_t(index)};
    return end;
  }

  int64_t k, f;
  std::vector<C> sums;
  std::vector<char> seen;
};

template <typename C>
void decode_tiles(const at::Tensor& values, const at::Tensor& indices, const at::Tensor& decoder,
                  const at::Tensor& bias, at::Tensor& out) {
  const int64_t n = values.size(0), k = values.size(1), f = decoder.size(0), d_out = decoder.size(1);
  const int threads = thread_count(n * k * d_out);
  const int64_t tile = std::min(n, kTileTokens * threads);
  std::vector<Code<C>> codes(tile * k);
  std::vector<CodeSpan<C>> spans(tile);
  DecodeArgs<C> args{spans.data(),
                     decoder.const_data_ptr(),
                     bias.const_data_ptr<C>(),
                     nullptr,
                     0,
                     f,
                     d_out,
                     scalar_of("decode", decoder.scalar_type())};
  for (int64_t first = 0; first < n; first += tile) {
    args.n = std::min(tile, n - first);
    at::parallel_for(0, args.n, threads == 1 ? args.n : kGrain, [&](int64_t begin, int64_t end) {
      Reader<C> reader(k, f);
      for (int64_t t = begin; t < end; ++t)
        spans[t] = reader.read(values.const_data_ptr<C>() + (first + t) * k,
                               indices.const_data_ptr<int32_t>() + (first + t) * k, codes.data() + t * k);
    });
    args.out = out.mutable_data_ptr<C>() + first * d_out;
    SPARSESTEER_KERNEL(decode)(args, threads);
  }
}

}  // namespace

at::Tensor decode(const at::Tensor& values, const at::Tensor& indices, const at::Tensor& decoder,
                  const at::Tensor& bias) {
  TORCH_CHECK(values.dim() == 2 && decoder.dim() == 2, "decode: values and decoder should be matrices");
  scalar_of("decode", values.scalar_type());
  const at::ScalarType compute = compute_type(values.scalar_type());
  check_table("decode", "indices", indices, values.sizes(), at::kInt);
  check_rows("decode", "decoder", decoder, decoder.sizes(), compute);
  check_table("decode", "bias", bias, {decoder.size(1)}, compute);
  const at::Tensor wide = values.to(compute).contiguous();
  at::Tensor out = at::empty({values.size(0), decoder.size(1)}, wide.options());
  if (compute == at::kDouble)
    decode_tiles<double>(wide, indices.contiguous(), decoder.contiguous(), bias.contiguous(), out);
  else
    decode_tiles<float>(wide, indices.contiguous(), decoder.contiguous(), bias.contiguous(), out);
  return out.to(values.scalar_type());
}

}  // namespace sparsesteer
