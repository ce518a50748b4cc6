// decode and steer_reconstruct for machines with AVX512 that multiply bf16 pairs.
#include "isa_avx512_bf16.h"

#ifdef SPARSESTEER_ISA
#include "decode_run.h"
#include "steer_reconstruct_run.h"
#endif
