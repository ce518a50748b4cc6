// Everything after this header is compiled for machines with AVX2 and chosen at run time; SPARSESTEER_ISA stays
// undefined where the compiler cannot.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include "isa_headers.h"

#pragma GCC target("avx2,fma,f16c")
#define SPARSESTEER_ISA avx2
#define SPARSESTEER_VECTOR_BYTES 32
#endif
