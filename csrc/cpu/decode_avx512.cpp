// decode and steer_reconstruct for machines with AVX512.
#include "isa_avx512.h"

#ifdef SPARSESTEER_ISA
#include "decode_run.h"
#include "steer_reconstruct_run.h"
#endif
