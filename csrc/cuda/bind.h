// The CUDA ops as functions of the module: op_cuda beside op, and why it would refuse a call.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "ops.h"

namespace sparsesteer::cuda {

inline void bind(pybind11::module_& m) {
  const auto unlocked = pybind11::call_guard<pybind11::gil_scoped_release>();
  m.def("steer_cuda", &steer, unlocked);
  m.def("steer_out_cuda", &steer_out, unlocked);
  m.def("steer_slots_cuda", &steer_slots, unlocked);
  m.def("steer_slots_out_cuda", &steer_slots_out, unlocked);
  m.def("steer_topk_cuda", &steer_topk, unlocked);
  m.def("steer_reconstruct_cuda", &steer_reconstruct, unlocked);
  // these take the arguments of their op and look at some of them
  using Rest = pybind11::args;
  m.def("steer_cuda_refusal", [](const at::Tensor& x, const Rest&) { return steer_refusal(x); });
  m.def("steer_slots_cuda_refusal", [](const at::Tensor& x, const Rest&) { return steer_refusal(x); });
  m.def("steer_topk_cuda_refusal", [](const at::Tensor& x, const at::Tensor& into, const MaybeTensor&,
                                      const at::Tensor& encoder, const at::Tensor&, const at::Tensor& features,
                                      const Rest&) { return steer_topk_refusal(x, into, encoder, features); });
  m.def("steer_reconstruct_cuda_refusal",
        [](const at::Tensor& x, const at::Tensor&, const MaybeTensor&, const at::Tensor& encoder, const Rest&) {
          return steer_reconstruct_refusal(x, encoder);
        });
}

}  // namespace sparsesteer::cuda
