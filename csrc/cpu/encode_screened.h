// encode for few tokens: an int8 copy of the encoder tells which features need an exact look, and the others cannot
// be among the results (sparsesteer/screen.py has the bound). Same bits as encode.
#pragma once

#include <memory>

#include "encode_run.h"
#include "screen_blocks.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kScreenedTokens = 4;                      // for more the exact encoder costs less
constexpr float kLeastNorm = 1e-15f, kLargestNorm = 1e15f;  // of tokens for which the bound holds

// What one thread found about one token.
struct Screened {
  explicit Screened(int64_t k) : floors(k) {}

  std::vector<float> ceilings;    // of the candidates' z
  std::vector<int64_t> features;  // of the candidates, rising
  Best<float> floors;             // of z, the k best
};

class ScreenedRun {
 public:
  ScreenedRun(const EncodeArgs& args, const ScreenArgs& screen, const EncodeOut& out)
      : a(args), screen(screen), out(out), cuts(args.n, -std::numeric_limits<float>::infinity()) {
    for (int64_t t = 0; t < a.n; ++t) {
      tokens.push_back(std::make_unique<Panel<float>>(a, t, 1));
      tokens[t]->read(0, 1);
      norms.push_back(euclidean_norm(tokens[t]->x[0], a.d));
    }
  }

  bool bound_holds() const {
    return std::all_of(norms.begin(), norms.end(), [](float norm) { return norm > kLeastNorm && norm < kLargestNorm; });
  }

  void operator()(int threads) {
    std::vector<std::vector<Screened>> found(threads, std::vector<Screened>(a.n, Screened(a.k)));
    std::vector<std::vector<Best<float>>> best(threads);
#pragma omp parallel num_threads(threads)
    {
      const int parts = omp_get_num_threads(), i = omp_get_thread_num();
      screen_features(share(a.f, parts, i, kTileFeatures), found[i]);
#pragma omp barrier
#pragma omp single
      for (int64_t t = 0; t < a.n && a.k > 0; ++t) cuts[t] = cut(found, t);
      for (int64_t t = 0; t < a.n; ++t) best[i].push_back(look_at_candidates(found[i][t], t));
#pragma omp barrier
#pragma omp single
      for (int64_t t = 0; t < a.n; ++t) {
        for (int other = 1; other < parts; ++other) best[0][t].merge(best[other][t]);
        write_token<float>(a, out, t, best[0][t].keys(), best[0][t].count);
      }
    }
  }

 private:
  void screen_features(Range range, std::vector<Screened>& found) const {
    float products[kTileFeatures] = {};
    for (int64_t j = range.begin; j < range.end; j += kTileFeatures) {
      const int64_t count = std::min(kTileFeatures, range.end - j);
      const TileRows<float> rows(a, j, count, a.k > 0 ? BIAS + 1 : FLOOR + 1);
      for (int64_t t = 0; t < a.n; ++t) {
        screened_products(tokens[t]->x[0], screen, j, count, a.d, products);
        for (int64_t i = 0; i < count; i += kLanes<float>)
          sift_bounds(rows, j, i, std::min(count - i, kLanes<float>), products, t, found[t]);
      }
    }
  }

  // z lies between floor and ceiling: rounding keeps the order of the bounds on its product.
  void sift_bounds(const TileRows<float>& rows, int64_t first, int64_t i, int64_t count, const float* products,
                   int64_t t, Screened& found) const {
    const Vec<float> product = load(products + i);
    const Vec<float> slack = part<float>(screen.error + first + i, count) * norms[t];
    const Vec<float> floor = rows.z(product - slack, tokens[t]->scale[0], i);
    const Vec<float> ceiling = rows.z(product + slack, tokens[t]->scale[0], i);
    const uint32_t within = lanes_below(count);
    uint32_t possible;
    if (a.k > 0) {
      possible = ~bits_of<float>(ceiling < found.floors.bar) & within;
      const uint32_t raising = bits_of<float>(floor > found.floors.bar) & within;
      if (raising) found.floors.push(floor, raising, int32_t(first + i));
    } else {
      possible = ~bits_of<float>(rows.inactive_up_to(ceiling, i)) & within;
    }
    for (; possible != 0; possible &= possible - 1) {
      const int lane = __builtin_ctz(possible);
      found.ceilings.push_back(ceiling[lane]), found.features.push_back(first + i + lane);
    }
  }

  // At least k features have a z of at least this.
  float cut(const std::vector<std::vector<Screened>>& found, int64_t t) const {
    Best<float> floors = found[0][t].floors;
    for (size_t other = 1; other < found.size(); ++other) floors.merge(found[other][t].floors);
    const std::vector<Key<float>> keys = floors.keys();
    return int64_t(keys.size()) < a.k ? cuts[t] : value_of<float>(keys[a.k - 1]);
  }

  Best<float> look_at_candidates(Screened& found, int64_t t) const {
    size_t kept = 0;
    for (size_t i = 0; i < found.features.size(); ++i)
      if (!(found.ceilings[i] < cuts[t])) found.features[kept++] = found.features[i];
    Best<float> best(a.k > 0 ? a.k : out.width);
    const auto visit = [&](int64_t j, int64_t count, const float* products) {
      sift_token(a, found.features.data() + j, count, products, tokens[t]->scale[0], best);
    };
    with_encoder_type<float>(
        a, [&](auto row) { stream<decltype(row)>(*tokens[t], a, found.features.data(), 0, int64_t(kept), visit); });
    return best;
  }

  const EncodeArgs& a;
  const ScreenArgs& screen;
  const EncodeOut& out;
  std::vector<std::unique_ptr<Panel<float>>> tokens;
  std::vector<float> norms;
  std::vector<float> cuts;  // a candidate's z has to reach this
};

void encode_screened(const EncodeArgs& args, const ScreenArgs& screen, const EncodeOut& out, int threads) {
  if (args.n > 0 && args.n <= kScreenedTokens && args.tensor_type != Scalar::DOUBLE) {
    ScreenedRun run(args, screen, out);
    if (run.bound_holds()) return run(threads);
  }
  encode(args, out, threads);
}

}  // namespace sparsesteer::SPARSESTEER_ISA
