// What cpu/steer_reconstruct.cpp hands to the kernel of an instruction set.
#pragma once

#include "steer_args.h"

namespace sparsesteer {

struct ReconstructArgs {
  // tokens, encoder and decoder [f, *] of the whole SAE; rows [m] of the edited features; delta_bias [d_out] is all
  // that does not depend on codes
  SteerArgs steer;
  const void* table;        // [f, N_COLUMNS] in the compute type
  const int64_t* features;  // [m], rising
  int64_t f, k;
};

namespace portable {
void steer_reconstruct(const ReconstructArgs& args, int threads);
}
namespace avx2 {
void steer_reconstruct(const ReconstructArgs& args, int threads);
}
namespace avx512 {
void steer_reconstruct(const ReconstructArgs& args, int threads);
}
namespace avx512_bf16 {
void steer_reconstruct(const ReconstructArgs& args, int threads);
}

}  // namespace sparsesteer
