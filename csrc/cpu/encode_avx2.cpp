// encode, encode_screened and the encoder of steer_topk for machines with AVX2.
#include "isa_avx2.h"

#ifdef SPARSESTEER_ISA
#include "encode_run.h"
#include "encode_screened.h"
#include "topk_activations.h"
#endif
