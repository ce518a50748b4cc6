// SPARSESTEER_KERNEL(encode)(...) calls portable::encode, avx2::encode and so on: the instruction set in use.
#pragma once

#include "../ops.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPARSESTEER_KERNEL(name)                                                              \
  [](auto&&... arguments) {                                                                   \
    const SimdLevel level = simd_level();                                                     \
    if (level == SimdLevel::AVX512_BF16) return sparsesteer::avx512_bf16::name(arguments...); \
    if (level == SimdLevel::AVX512) return sparsesteer::avx512::name(arguments...);           \
    if (level == SimdLevel::AVX2) return sparsesteer::avx2::name(arguments...);               \
    return sparsesteer::portable::name(arguments...);                                         \
  }
#else
#define SPARSESTEER_KERNEL(name) [](auto&&... arguments) { return sparsesteer::portable::name(arguments...); }
#endif
