// encode over all tokens and features: who does what, and what becomes of the candidates.
#pragma once

#include <omp.h>

#include <functional>

#include "encode_args.h"
#include "shares.h"
#include "sieve.h"

namespace sparsesteer::SPARSESTEER_ISA {

// Finds the `limit` best candidates of every token and hands them, unsorted, to emit(i, keys, count) with i in
// [0, args.n) and the number of all active features (without k).
// bars: [n] the values that a token's candidates have to exceed, or null.
template <typename C>
class EncodeRun {
 public:
  using Emit = std::function<void(int64_t, std::vector<Key<C>>, int64_t)>;

  EncodeRun(const EncodeArgs& args, int64_t limit, const C* bars, Emit emit)
      : a(args), limit(limit), bars(bars), emit(std::move(emit)) {}

  void operator()(int threads) const {
    if (threads > 1 && a.n <= kPanelTokens) return run_shared(threads);
#pragma omp parallel num_threads(threads)
    run_panels(share(a.n, omp_get_num_threads(), omp_get_thread_num(), kTokenGroup));
  }

 private:
  // One thread, its own tokens, panel after panel.
  void run_panels(Range tokens) const {
    const int64_t n = tokens.end - tokens.begin, panels = (n + kPanelTokens - 1) / kPanelTokens;
    for (int64_t i = 0; i < panels; ++i) {
      const Range mine = share(n, panels, i, kTokenGroup);
      const int64_t first = tokens.begin + mine.begin;
      Panel<C> panel(a, first, mine.end - mine.begin);
      panel.read(0, panel.n);
      std::vector<Best<C>> best = lists(first, panel.n);
      sift_features(panel, {0, a.f}, best);
      for (int64_t t = 0; t < panel.n; ++t) emit(first + t, best[t].keys(), best[t].count);
    }
  }

  // All threads on all tokens, each with its own features.
  void run_shared(int threads) const {
    Panel<C> panel(a, 0, a.n);
    std::vector<std::vector<Best<C>>> best(threads);
#pragma omp parallel num_threads(threads)
    {
      const int parts = omp_get_num_threads(), i = omp_get_thread_num();
      const Range mine = share(a.n, parts, i, 1);
      panel.read(mine.begin, mine.end);
      best[i] = lists(0, a.n);
#pragma omp barrier
      sift_features(panel, share(a.f, parts, i, kTileFeatures), best[i]);
#pragma omp barrier
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        for (int other = 1; other < parts; ++other) best[0][t].merge(best[other][t]);
        emit(t, best[0][t].keys(), best[0][t].count);
      }
    }
  }

  std::vector<Best<C>> lists(int64_t first, int64_t n) const {
    std::vector<Best<C>> best;
    best.reserve(n);
    for (int64_t t = first; t < first + n; ++t) bars ? best.emplace_back(limit, bars[t]) : best.emplace_back(limit);
    return best;
  }

  void sift_features(const Panel<C>& panel, Range features, std::vector<Best<C>>& best) const {
    const auto visit = [&](int64_t j, int64_t count, const C* z) { sift(panel, a, j, count, z, best); };
    with_encoder_type<C>(
        a, [&](auto row) { stream<decltype(row)>(panel, a, nullptr, features.begin, features.end, visit); });
  }

  const EncodeArgs& a;
  int64_t limit;
  const C* bars;
  Emit emit;
};

// With k the candidates are the k largest z: what is left of them are those whose f is not 0.
template <typename C>
void activate_candidates(const EncodeArgs& a, std::vector<Key<C>>& keys) {
  size_t kept = 0;
  for (const Key<C> key : keys) {
    const int32_t index = index_of<C>(key);
    const C f = activate(static_cast<const C*>(a.rows) + index * a.row_stride, value_of<C>(key));
    if (f != 0) keys[kept++] = key_of(f, index);
  }
  keys.resize(kept);
}

// A row of the result: by falling f, the lower index first in ties, padded with -1.
template <typename C>
void write_row(const EncodeOut& out, int64_t i, std::vector<Key<C>>& keys) {
  std::sort(keys.begin(), keys.end(), std::greater<Key<C>>());
  C* values = static_cast<C*>(out.values) + i * out.width;
  int32_t* indices = out.indices + i * out.width;
  const int64_t found = std::min(int64_t(keys.size()), out.width);
  for (int64_t j = 0; j < found; ++j) values[j] = value_of<C>(keys[j]), indices[j] = index_of<C>(keys[j]);
  std::fill(values + found, values + out.width, C(0));
  std::fill(indices + found, indices + out.width, -1);
}

template <typename C>
void write_token(const EncodeArgs& a, const EncodeOut& out, int64_t i, std::vector<Key<C>> keys, int64_t count) {
  if (a.k > 0) activate_candidates<C>(a, keys);
  out.counts[i] = int32_t(a.k > 0 ? int64_t(keys.size()) : count);
  write_row<C>(out, i, keys);
}

template <typename C>
void encode_as(const EncodeArgs& a, const EncodeOut& out, int threads) {
  const auto emit = [&](int64_t i, std::vector<Key<C>> keys, int64_t count) {
    write_token<C>(a, out, i, std::move(keys), count);
  };
  EncodeRun<C>(a, a.k > 0 ? a.k : out.width, nullptr, emit)(threads);
}

void encode(const EncodeArgs& args, const EncodeOut& out, int threads) {
  args.tensor_type == Scalar::DOUBLE ? encode_as<double>(args, out, threads) : encode_as<float>(args, out, threads);
}

template <typename C>
void collect_codes(const EncodeArgs& a, int threads, Codes<C>& codes) {
  codes.resize(a.n);
  const auto emit = [&](int64_t i, std::vector<Key<C>> keys, int64_t) {
    if (a.k > 0) activate_candidates<C>(a, keys);
    std::vector<Code<C>>& mine = codes[i];
    mine.clear();
    mine.reserve(keys.size());
    for (const Key<C> key : keys) mine.push_back({value_of<C>(key), index_of<C>(key)});
    if (a.k > 0) std::sort(mine.begin(), mine.end(), [](Code<C> p, Code<C> q) { return p.index < q.index; });
  };
  EncodeRun<C>(a, a.k > 0 ? a.k : kNoLimit, nullptr, emit)(threads);
}

void encode_codes(const EncodeArgs& args, int threads, Codes<float>& codes) { collect_codes(args, threads, codes); }

void encode_codes(const EncodeArgs& args, int threads, Codes<double>& codes) { collect_codes(args, threads, codes); }

}  // namespace sparsesteer::SPARSESTEER_ISA
