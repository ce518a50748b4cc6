// decode and steer_reconstruct for machines with AVX2.
#include "isa_avx2.h"

#ifdef SPARSESTEER_ISA
#include "decode_run.h"
#include "steer_reconstruct_run.h"
#endif
