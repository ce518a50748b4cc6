// decode and steer_reconstruct for every machine.
#include "isa_portable.h"

#ifdef SPARSESTEER_ISA  // keeps the order of these includes
#include "decode_run.h"
#include "steer_reconstruct_run.h"
#endif
