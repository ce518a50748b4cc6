// steer for every machine: vectors of 16 bytes, which all compilers lower to what they have.
#define SPARSESTEER_ISA portable
#define SPARSESTEER_VECTOR_BYTES 16
#include "steer_run.h"
