// decode and steer_reconstruct for every machine.
#include "decode_run.h"
#include "isa_portable.h"
