// The CUDA ops as functions of the module: op_cuda beside op, and op_cuda_refusal.
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
  m.def("steer_refusal", &steer_refusal);
  m.def("steer_topk_refusal", &steer_topk_refusal);
  m.def("steer_reconstruct_refusal", &steer_reconstruct_refusal);
}

}  // namespace sparsesteer::cuda
