// Everything after this header is compiled for machines with AVX512 and chosen at run time; SPARSESTEER_ISA stays
// undefined where the compiler cannot. Standard headers come before the pragma: an inline function of theirs compiled
// for this instruction set could be linked into code that runs on any machine.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define SPARSESTEER_ISA avx512
#define SPARSESTEER_VECTOR_BYTES 64
#endif
