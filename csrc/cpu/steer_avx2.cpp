// steer and steer_slots for machines with AVX2.
#include "isa_avx2.h"

#ifdef SPARSESTEER_ISA
#include "steer_run.h"
#endif
