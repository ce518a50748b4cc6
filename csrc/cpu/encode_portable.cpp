// encode, encode_screened and the encoder of steer_topk for every machine.
#include "isa_portable.h"

// after it, for the vectors are of its size
#include "encode_run.h"
#include "encode_screened.h"
#include "topk_activations.h"
