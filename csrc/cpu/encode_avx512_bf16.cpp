// encode, encode_screened and the encoder of steer_topk for machines with AVX512 that multiply bf16 pairs.
#include "isa_avx512_bf16.h"

#ifdef SPARSESTEER_ISA
#include "encode_run.h"
#include "encode_screened.h"
#include "topk_activations.h"
#endif
