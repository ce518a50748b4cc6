// steer and steer_slots for every machine.
#include "isa_portable.h"
#include "steer_run.h"
