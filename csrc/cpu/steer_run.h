// steer over all tokens: which tokens have work, who does it, and the choice of types.
#pragma once

#include <omp.h>

#include <memory>
#include <vector>

#include "steer_tile.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kTileTokens = 48;
constexpr int64_t kSharedTokens = kMostTokens;  // at most so many tokens are one tile that all threads share
constexpr int64_t kColumnsTogether = 64;        // a thread's share of columns is a multiple of this

// Scratch that lives as long as its thread, so that a call of one token allocates nothing.
inline char* scratch(size_t bytes) {
  static thread_local std::unique_ptr<char[]> memory;
  static thread_local size_t capacity = 0;
  if (bytes + 64 > capacity) {
    capacity = bytes + 64;
    memory.reset(new char[capacity]);
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  return memory.get() + (64 - address % 64) % 64;
}

struct Range {
  int64_t begin, end;
};

// Part `i` of `parts` of [0, n), its borders multiples of `grain`.
inline Range share(int64_t n, int64_t parts, int64_t i, int64_t grain) {
  const int64_t chunk = ((n + parts - 1) / parts + grain - 1) / grain * grain;
  return {std::min(n, i * chunk), std::min(n, (i + 1) * chunk)};
}

template <typename T, typename R, typename C>
class Run {
 public:
  Run(const SteerArgs& args, int threads) : a(args), threads(threads) {
    const C* per_token = static_cast<const C*>(a.token_strength);
    live.reserve(a.n);
    for (int64_t t = 0; t < a.n; ++t)
      if (C(a.strength) * (per_token ? per_token[t] : C(1)) != 0) live.push_back(int32_t(t));
  }

  void operator()() {
    if (int64_t(live.size()) < a.n) copy_others();
    if (live.empty()) return;
    const int64_t n = live.size();
    if (threads == 1)
      run_tiles({0, n});
    else if (n <= kSharedTokens && (a.m >= threads * kRowGroup || n < threads * kTokenGroup))
      run_shared(n);
    else
#pragma omp parallel num_threads(threads)
      run_tiles(share(n, omp_get_num_threads(), omp_get_thread_num(), kTokenGroup));
  }

 private:
  using TileType = Tile<T, R, C>;

  // One thread, its own tokens, tile after tile.
  void run_tiles(Range tokens) const {
    const int64_t count = tokens.end - tokens.begin, tiles = (count + kTileTokens - 1) / kTileTokens;
    for (int64_t i = 0; i < tiles; ++i) {
      const Range mine = share(count, tiles, i, kTokenGroup);
      const int64_t t = tokens.begin + mine.begin, n = mine.end - mine.begin;
      if (n == 0) continue;
      const size_t bytes = TileType::scratch_bytes(a, n);
      char* memory = scratch(bytes + TileType::term_count(a, n) * sizeof(Term));
      TileType tile(a, live.data() + t, n, memory);
      tile.read(0, n);
      tile.encode(0, a.m);
      tile.add(0, a.d_out, reinterpret_cast<Term*>(memory + bytes));
      if (a.preserve_norm) tile.finish(0, n);
    }
  }

  // All threads on one tile: rows are shared in encode, columns in add.
  void run_shared(int64_t n) const {
    TileType tile(a, live.data(), n, scratch(TileType::scratch_bytes(a, n)));
    const bool together = TileType::reads_much(a);
    if (!together) tile.read(0, n);
    const int64_t lists = TileType::term_count(a, n);
    std::vector<Term> terms(lists * threads);
#pragma omp parallel num_threads(threads)
    {
      const int parts = omp_get_num_threads(), i = omp_get_thread_num();
      if (together) {
        const Range mine = share(n, parts, i, 1);
        tile.read(mine.begin, mine.end);
#pragma omp barrier
      }
      const Range rows = share(a.m, parts, i, n == 1 ? kRowGroupOneToken : kRowGroup);
      tile.encode(rows.begin, rows.end);
#pragma omp barrier
      const Range columns = share(a.d_out, parts, i, kColumnsTogether);
      tile.add(columns.begin, columns.end, terms.data() + i * lists);
      if (a.preserve_norm) {
#pragma omp barrier
        const Range mine = share(n, parts, i, 1);
        tile.finish(mine.begin, mine.end);
      }
    }
  }

  // Tokens of strength 0.
  void copy_others() const {
    if (a.out == a.into) return;
    size_t next = 0;
    for (int64_t t = 0; t < a.n; ++t) {
      if (next < live.size() && live[next] == t) {
        ++next;
        continue;
      }
      std::memcpy(static_cast<T*>(a.out) + t * a.out_stride, static_cast<const T*>(a.into) + t * a.into_stride,
                  a.d_out * sizeof(T));
    }
  }

  const SteerArgs& a;
  int threads;
  std::vector<int32_t> live;
};

template <typename T, typename C>
void with_rows(const SteerArgs& args, int threads) {
  if (args.row_type == Scalar::BFLOAT16) {
    if constexpr (sizeof(C) == sizeof(float)) Run<T, BFloat16, C>(args, threads)();
  } else {
    Run<T, C, C>(args, threads)();
  }
}

void steer(const SteerArgs& args, int threads) {
  switch (args.tensor_type) {
    case Scalar::FLOAT: return with_rows<float, float>(args, threads);
    case Scalar::BFLOAT16: return with_rows<BFloat16, float>(args, threads);
    case Scalar::HALF: return with_rows<Half, float>(args, threads);
    case Scalar::DOUBLE: return with_rows<double, double>(args, threads);
  }
}

}  // namespace sparsesteer::SPARSESTEER_ISA
