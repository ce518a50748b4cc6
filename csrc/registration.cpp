// What the extension gives: CPU implementations of the ops, and functions of the module sparsesteer._C.
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include <map>
#include <string>

#include "ops.h"

#ifdef SPARSESTEER_CUDA
#include "cuda/bind.h"
#endif

namespace {

std::map<std::string, std::string> build_info() {
  return {{"torch", TORCH_VERSION},
          {"compiler", __VERSION__},
          {"simd", sparsesteer::simd_name()},
          {"threads", std::to_string(at::get_num_threads())}};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsesteer, CPU, m) {
  m.impl("steer", &sparsesteer::steer);
  m.impl("steer_out",
         [](const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
            const at::Tensor& encoder, const at::Tensor& decoder, const at::Tensor& rows,
            const std::optional<at::Tensor>& delta_bias, const std::optional<at::Tensor>& token_strength,
            double strength, int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm, at::Tensor& out) {
           sparsesteer::steer_out(x, into, residual, encoder, decoder, rows, delta_bias, token_strength, strength,
                                  input_norm, scale_rule, gap, preserve_norm, out);
         });
  m.impl("steer_slots", &sparsesteer::steer_slots);
  m.impl("steer_slots_out", &sparsesteer::steer_slots_out);
  m.impl("decode", &sparsesteer::decode);
  m.impl("steer_reconstruct", &sparsesteer::steer_reconstruct);
  m.impl("encode", &sparsesteer::encode);
  m.impl("encode_screened", &sparsesteer::encode_screened);
  m.impl("steer_topk", &sparsesteer::steer_topk);
  m.impl("activations", &sparsesteer::activations);
  m.impl("activations_topk", &sparsesteer::activations_topk);
}

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info);
  m.def("set_simd_level", &sparsesteer::set_simd_level);
  m.def("steer_eager", &sparsesteer::steer_eager, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("activations_eager", &sparsesteer::activations_eager, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("steer", &sparsesteer::steer, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("steer_out", &sparsesteer::steer_out, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("steer_slots", &sparsesteer::steer_slots, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("steer_slots_out", &sparsesteer::steer_slots_out, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("decode", &sparsesteer::decode, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("steer_reconstruct", &sparsesteer::steer_reconstruct, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("encode", &sparsesteer::encode, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("encode_screened", &sparsesteer::encode_screened, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("steer_topk", &sparsesteer::steer_topk, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("activations", &sparsesteer::activations, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("activations_topk", &sparsesteer::activations_topk, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("mutual_information", &sparsesteer::mutual_information, pybind11::call_guard<pybind11::gil_scoped_release>());
#ifdef SPARSESTEER_CUDA
  sparsesteer::cuda::bind(m);
#endif
}
