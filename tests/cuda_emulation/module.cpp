// The CUDA ops on CPU tensors, through their real bindings and the emulated machine.
#include "../../csrc/cuda/bind.h"
#include "machine.h"

PYBIND11_MODULE(emulated_cuda, m) {
  sparsesteer::cuda::bind(m);
  m.def("set_device", [](int multiprocessors, size_t shared_bytes, const std::string& order) {
    emulation::device() = {multiprocessors, shared_bytes,
                           order == "rising"    ? emulation::Order::RISING
                           : order == "falling" ? emulation::Order::FALLING
                                                : emulation::Order::SHUFFLED};
  });
}
