// steer, steer_slots and activations for machines with AVX512.
#include "isa_avx512.h"

#ifdef SPARSESTEER_ISA
#include "activations_run.h"
#include "steer_run.h"
#endif
