// The function of the instruction set in use: SPARSESTEER_KERNEL(steer) is portable::steer, avx2::steer or
// avx512::steer.
#pragma once

#include "../ops.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPARSESTEER_KERNEL(name)                                  \
  (simd_level() == SimdLevel::AVX512 ? &sparsesteer::avx512::name \
   : simd_level() == SimdLevel::AVX2 ? &sparsesteer::avx2::name   \
                                     : &sparsesteer::portable::name)
#else
#define SPARSESTEER_KERNEL(name) (&sparsesteer::portable::name)
#endif
