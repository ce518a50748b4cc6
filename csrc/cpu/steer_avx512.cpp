// steer and steer_slots for machines with AVX512.
#include "isa_avx512.h"

#ifdef SPARSESTEER_ISA
#include "steer_run.h"
#endif
