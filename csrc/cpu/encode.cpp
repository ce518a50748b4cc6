// encode and encode_screened on CPU tensors: checks, choice of instruction set and number of threads.
#include <ATen/Functions.h>

#include "../check.h"
#include "encode_host.h"
#include "kernels.h"

namespace sparsesteer {

namespace {

// The tensors of a call; they own what the kernels' arguments point to.
struct Call {
  at::Tensor x, encoder, rows, values, indices, counts;
  EncodeArgs args;
  EncodeOut out;

  Call(const char* op, const at::Tensor& x_any, const at::Tensor& encoder_any, const at::Tensor& rows_any, int64_t k,
       int64_t width, int64_t input_norm) {
    check_encoder(op, x_any, encoder_any, k);
    check_table(op, "rows", rows_any, {encoder_any.size(0), N_COLUMNS}, compute_type(x_any.scalar_type()));
    TORCH_CHECK(width >= 0, op, ": width should not be negative, got ", width);
    x = with_contiguous_rows(x_any), encoder = encoder_any.contiguous(), rows = rows_any.contiguous();
    values = at::empty({x.size(0), width}, x.options().dtype(rows.scalar_type()));
    indices = at::empty({x.size(0), width}, x.options().dtype(at::kInt));
    counts = at::empty({x.size(0)}, x.options().dtype(at::kInt));
    args = encode_args(op, x, encoder, k, input_norm);
    args.rows = rows.const_data_ptr();
    out = {values.data_ptr(), indices.data_ptr<int32_t>(), counts.data_ptr<int32_t>(), width};
  }

  int threads() const { return thread_count(args.n * args.f * args.d); }
  CodesOfTokens result() const { return {values, indices, counts}; }
};

}  // namespace

void check_encoder(const char* op, const at::Tensor& x, const at::Tensor& encoder, int64_t k) {
  TORCH_CHECK(x.dim() == 2 && encoder.dim() == 2, op, ": x and encoder should be matrices");
  check_rows(op, "encoder", encoder, {encoder.size(0), x.size(1)}, compute_type(x.scalar_type()));
  TORCH_CHECK(encoder.size(0) <= std::numeric_limits<int32_t>::max(), op, ": too many features for 32-bit indices");
  TORCH_CHECK(k >= 0, op, ": k should not be negative, got ", k);
}

void check_features(const char* op, const at::Tensor& features_any, int64_t n_features) {
  check_table(op, "features", features_any, {features_any.numel()}, at::kLong);
  const at::Tensor features = features_any.contiguous();
  const int64_t* first = features.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < features.numel(); ++j)
    TORCH_CHECK(first[j] >= 0 && first[j] < n_features, op, ": feature ", first[j], " is out of range, there are ",
                n_features);
}

EncodeArgs encode_args(const char* op, const at::Tensor& x, const at::Tensor& encoder, int64_t k, int64_t input_norm) {
  EncodeArgs args{};
  args.x = x.const_data_ptr(), args.x_stride = x.stride(0);
  args.encoder = encoder.const_data_ptr();
  args.n = x.size(0), args.d = x.size(1), args.f = encoder.size(0);
  args.k = k < args.f ? k : 0;
  args.input_norm = int(input_norm);
  args.tensor_type = scalar_of(op, x.scalar_type()), args.row_type = scalar_of(op, encoder.scalar_type());
  return args;
}

CodesOfTokens encode(const at::Tensor& x, const at::Tensor& encoder, const at::Tensor& rows, int64_t k, int64_t width,
                     int64_t input_norm) {
  const Call call("encode", x, encoder, rows, k, width, input_norm);
  SPARSESTEER_KERNEL(encode)(call.args, call.out, call.threads());
  return call.result();
}

CodesOfTokens encode_screened(const at::Tensor& x, const at::Tensor& encoder, const at::Tensor& rows,
                              const at::Tensor& screen_any, const at::Tensor& scale_any, const at::Tensor& error_any,
                              int64_t k, int64_t width, int64_t input_norm) {
  const Call call("encode_screened", x, encoder, rows, k, width, input_norm);
  const int64_t f = call.args.f, d = call.args.d;
  check_table("encode_screened", "screen", screen_any, {f, d}, at::kChar);
  check_table("encode_screened", "screen_scale", scale_any, {f, (d + kScreenGroup - 1) / kScreenGroup}, at::kFloat);
  check_table("encode_screened", "screen_error", error_any, {f}, at::kFloat);
  const at::Tensor screen = screen_any.contiguous(), scale = scale_any.contiguous(), error = error_any.contiguous();
  const ScreenArgs screened{screen.const_data_ptr<int8_t>(), scale.const_data_ptr<float>(),
                            error.const_data_ptr<float>()};
  SPARSESTEER_KERNEL(encode_screened)(call.args, screened, call.out, call.threads());
  return call.result();
}

}  // namespace sparsesteer
