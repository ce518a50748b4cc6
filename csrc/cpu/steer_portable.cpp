// steer, steer_slots and activations for every machine.
#include "isa_portable.h"

// after it, for the vectors are of its size
#include "activations_run.h"
#include "steer_run.h"
