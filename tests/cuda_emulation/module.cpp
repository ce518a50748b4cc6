// The CUDA ops on CPU tensors, through their real bindings and the emulated machine.
#include <pybind11/stl.h>

#include "../../csrc/cuda/bind.h"
#include "machine.h"

namespace {

// Every thread reads what its neighbour wrote: right in any order only if threads wait for each other in between.
std::vector<int> neighbours(int threads, bool wait) {
  std::vector<int> written(threads, -1), read(threads);
  emulation::run(1, threads, false, [&] {
    const int i = int(emulation::machine().thread.x);
    written[i] = i;
    if (wait) emulation::machine().wait_for_block();
    read[i] = written[(i + 1) % threads];
  });
  return read;
}

}  // namespace

PYBIND11_MODULE(emulated_cuda, m) {
  sparsesteer::cuda::bind(m);
  m.def("neighbours", &neighbours);
  m.def("set_device", [](int multiprocessors, size_t shared_bytes, const std::string& order) {
    emulation::device() = {multiprocessors, shared_bytes,
                           order == "rising"    ? emulation::Order::RISING
                           : order == "falling" ? emulation::Order::FALLING
                                                : emulation::Order::SHUFFLED};
  });
}
