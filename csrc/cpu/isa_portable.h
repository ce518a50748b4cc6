// Everything after this header runs on every machine: vectors of 16 bytes, which all compilers lower to what they have.
#pragma once

#define SPARSESTEER_ISA portable
#define SPARSESTEER_VECTOR_BYTES 16
