// The second inner loop of steer, sums of decoder rows (dot_block.h has the first). Every result is added up in an
// order that depends on its own column alone, never on the number of tokens or threads, so that a token's result has
// the same bits in every batch.
#pragma once

#include "dot_block.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int kColumnGroup = 4;
constexpr int64_t kRowsAhead = 4;  // that are fetched early for a single token

// A decoder row that a sum takes part of, and the row of its amounts.
struct Term {
  int32_t row, amounts;
};

// y[t][v] += sum over the terms of amounts[t] * decoder[row], CV vectors wide from column c on.
template <typename C, typename R, int TG, int CV>
SPARSESTEER_INLINE void sum_block(const R* decoder, int64_t d_out, const C* amounts, int64_t stride, const Term* terms,
                                  int64_t n_terms, int64_t c, Vec<C> (&y)[TG][CV]) {
  for (int64_t i = 0; i < n_terms; ++i) {
    const R* row = decoder + terms[i].row * d_out + c;
    const C* amount = amounts + terms[i].amounts * stride;
    if (TG == 1 && i + kRowsAhead < n_terms) {  // rows lie far apart: the hardware does not see the next one coming
      const char* next = reinterpret_cast<const char*>(decoder + terms[i + kRowsAhead].row * d_out + c);
      for (int64_t byte = 0; byte < int64_t(CV * kLanes<C> * sizeof(R)); byte += 64) __builtin_prefetch(next + byte);
    }
    Vec<C> taken[TG];
    for (int t = 0; t < TG; ++t) taken[t] = broadcast(amount[t]);
    for (int v = 0; v < CV; ++v) {
      const Vec<C> columns = load(row + v * kLanes<C>);
      for (int t = 0; t < TG; ++t) y[t][v] += columns * taken[t];
    }
  }
}

// The same for the last n < kLanes columns.
template <typename C, typename R, int TG>
SPARSESTEER_INLINE void sum_tail(const R* decoder, int64_t d_out, const C* amounts, int64_t stride, const Term* terms,
                                 int64_t n_terms, int64_t c, Vec<C> (&y)[TG][1]) {
  const int64_t n = d_out - c;
  for (int64_t i = 0; i < n_terms; ++i) {
    const Vec<C> columns = load_part<C>(decoder + terms[i].row * d_out + c, n);
    for (int t = 0; t < TG; ++t) y[t][0] += columns * amounts[terms[i].amounts * stride + t];
  }
}

}  // namespace sparsesteer::SPARSESTEER_ISA
