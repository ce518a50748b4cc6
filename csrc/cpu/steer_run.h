// steer over the tokens of one plan, or of several: who does what.
#pragma once

#include <omp.h>

#include <vector>

#include "shares.h"
#include "steer_tile.h"
#include "types.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kTileTokens = kMostTokens;
constexpr int64_t kSharedTokens = 64;     // at most so many tokens are one tile that all threads share
constexpr int64_t kColumnsTogether = 64;  // a thread's share of columns is a multiple of this

// go(tile, its number of tokens, room for its terms) for the tiles of a range of tokens, which are read.
template <typename T, typename R, typename C, typename Go>
void each_tile(const SteerArgs& a, Range tokens, Go&& go) {
  using TileType = Tile<T, R, C>;
  const int64_t count = tokens.end - tokens.begin, tiles = (count + kTileTokens - 1) / kTileTokens;
  for (int64_t i = 0; i < tiles; ++i) {
    const Range mine = share(count, tiles, i, kTokenGroup);
    const int64_t t = tokens.begin + mine.begin, n = mine.end - mine.begin;
    if (n == 0) continue;
    const size_t shared = TileType::shared_bytes(a, n), own = TileType::own_bytes(a, n);
    char* memory = scratch(shared + own + TileType::term_count(a, n) * sizeof(Term));
    TileType tile(a, a.tokens + t, n, memory, memory + shared);
    tile.read();
    tile.weigh(0, n);
    go(tile, n, reinterpret_cast<Term*>(memory + shared + own));
  }
}

// One thread, its own tokens, tile after tile.
template <typename T, typename R, typename C>
void steer_alone(const SteerArgs& a, Range tokens) {
  each_tile<T, R, C>(a, tokens, [&](Tile<T, R, C>& tile, int64_t n, Term* terms) {
    tile.encode(0, a.m);
    tile.add(0, a.d_out, terms);
    if (a.preserve_norm) tile.finish(0, n);
  });
}

// All threads on one tile: rows are shared in encode, columns in add.
template <typename T, typename R, typename C>
void steer_shared(const SteerArgs& a, int threads) {
  using TileType = Tile<T, R, C>;
  const size_t shared = TileType::shared_bytes(a, a.n), own = TileType::own_bytes(a, a.n);
  char* memory = scratch(shared + threads * own);
  if (!reads_norms(a)) TileType(a, a.tokens, a.n, memory, memory + shared).weigh(0, a.n);
  const int64_t lists = TileType::term_count(a, a.n);
  std::vector<Term> terms(lists * threads);
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
    tile.encode(rows.begin, rows.end);
#pragma omp barrier
    const Range columns = share(a.d_out, parts, i, kColumnsTogether);
    tile.add(columns.begin, columns.end, terms.data() + i * lists);
    if (a.preserve_norm) {
#pragma omp barrier
      const Range mine = share(a.n, parts, i, 1);
      tile.finish(mine.begin, mine.end);
    }
  }
}

// True if a tile for every thread would leave threads without work.
inline bool shares_a_tile(const SteerArgs& a, int threads) {
  return threads > 1 && a.n <= kSharedTokens && (a.m >= threads * kRowGroup || a.n < threads * kTokenGroup);
}

template <typename T, typename R, typename C>
void steer_one(const SteerArgs& a, int threads) {
  if (threads == 1) {
    steer_alone<T, R, C>(a, {0, a.n});
  } else if (shares_a_tile(a, threads)) {
    steer_shared<T, R, C>(a, threads);
  } else {
#pragma omp parallel num_threads(threads)
    steer_alone<T, R, C>(a, share(a.n, omp_get_num_threads(), omp_get_thread_num(), kTokenGroup));
  }
}

// Threads share each plan's work while plans are few; they take plans in turn where these are many.
void steer(const SteerArgs* plans, int64_t count, int threads) {
  with_types(plans->tensor_type, plans->row_type, [&]<typename T, typename R, typename C>() {
    if (threads == 1 || count < 2 * threads) {
      for (int64_t i = 0; i < count; ++i) steer_one<T, R, C>(plans[i], threads);
    } else {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
      for (int64_t i = 0; i < count; ++i) steer_alone<T, R, C>(plans[i], {0, plans[i].n});
    }
  });
}

}  // namespace sparsesteer::SPARSESTEER_ISA
