// activations over all tokens: steer's tiles as far as their encoder, so that both have the same bits.
#pragma once

#include "steer_run.h"

namespace sparsesteer::SPARSESTEER_ISA {

// One thread, its own tokens, tile after tile.
template <typename T, typename R, typename C>
void activations_alone(const SteerArgs& a, Range tokens, C* f) {
  each_tile<T, R, C>(a, tokens, [&](Tile<T, R, C>& tile, int64_t, Term*) {
    tile.find_activations(0, a.m);
    tile.put_activations(0, a.m, f);
  });
}

// All threads on one tile, rows shared.
template <typename T, typename R, typename C>
void activations_shared(const SteerArgs& a, int threads, C* f) {
  using TileType = ActivationTile<T, R, C>;
  const size_t shared = TileType::shared_bytes(a, a.n), own = TileType::own_bytes(a, a.n);
  char* memory = scratch(shared + threads * own);
  if (!reads_norms(a)) TileType(a, a.tokens, a.n, memory, memory + shared).weigh(0, a.n);
#pragma omp parallel num_threads(threads)
  {
    const int parts = omp_get_num_threads(), i = omp_get_thread_num();
    TileType tile(a, a.tokens, a.n, memory, memory + shared + i * own);
    tile.read();
    if (reads_norms(a)) {
      const Range mine = share(a.n, parts, i, 1);
      tile.weigh(mine.begin, mine.end);
#pragma omp barrier
    }
    const Range rows = share(a.m, parts, i, a.n == 1 ? kRowGroupOneToken : kRowGroup);
    tile.find_activations(rows.begin, rows.end);
    tile.put_activations(rows.begin, rows.end, f);
  }
}

void activations(const SteerArgs& a, int threads, void* found) {
  with_types(a.tensor_type, a.row_type, [&]<typename T, typename R, typename C>() {
    C* f = static_cast<C*>(found);
    if (threads == 1) {
      activations_alone<T, R, C>(a, {0, a.n}, f);
    } else if (shares_a_tile(a, threads)) {
      activations_shared<T, R, C>(a, threads, f);
    } else {
#pragma omp parallel num_threads(threads)
      activations_alone<T, R, C>(a, share(a.n, omp_get_num_threads(), omp_get_thread_num(), kTokenGroup), f);
    }
  });
}

}  // namespace sparsesteer::SPARSESTEER_ISA
