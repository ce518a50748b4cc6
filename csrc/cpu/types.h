// From types named at run time to types of the compiler.
#pragma once

#include "simd.h"
#include "steer_args.h"

namespace sparsesteer::SPARSESTEER_ISA {

// run.template operator()<T, R, C>(): T of tokens, R of encoder and decoder rows, C that is computed in.
template <typename T, typename C, typename Run>
void with_row_type(Scalar row, Run&& run) {
  if (row == Scalar::BFLOAT16) {
    if constexpr (sizeof(C) == sizeof(float)) run.template operator()<T, BFloat16, C>();
  } else {
    run.template operator()<T, C, C>();
  }
}

template <typename Run>
void with_types(Scalar tensor, Scalar row, Run&& run) {
  switch (tensor) {
    case Scalar::FLOAT: return with_row_type<float, float>(row, run);
    case Scalar::BFLOAT16: return with_row_type<BFloat16, float>(row, run);
    case Scalar::HALF: return with_row_type<Half, float>(row, run);
    case Scalar::DOUBLE: return with_row_type<double, double>(row, run);
  }
}

}  // namespace sparsesteer::SPARSESTEER_ISA
