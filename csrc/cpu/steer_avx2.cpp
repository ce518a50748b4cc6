// steer, steer_slots and activations for machines with AVX2.
#include "isa_avx2.h"

#ifdef SPARSESTEER_ISA
#include "activations_run.h"
#include "steer_run.h"
#endif
