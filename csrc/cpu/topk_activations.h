// Activations of edited features under TopK: which of them are among the k largest, without all the others' values.
#pragma once

#include <cmath>

#include "encode_run.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int64_t kEditedPanel = 48;

// f [n, m]: first the edited features' z, then their activations in place.
template <typename C>
class TopkActivations {
 public:
  TopkActivations(const EncodeArgs& args, const EditedRows& edited, C* f) : a(args), edited(edited), f(f) {}

  void operator()(int threads) {
    const int64_t panels = (a.n + kEditedPanel - 1) / kEditedPanel;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < panels; ++i) edited_z(share(a.n, panels, i, 1));
    if (a.k == 0) {
      for (int64_t i = 0; i < a.n; ++i) activate_token(f_of(i), 0);
      return;
    }
    set_aside_the_inactive();
    EncodeArgs rest = a;
    rest.tokens = tokens.data(), rest.n = int64_t(tokens.size());
    EncodeRun<C>(rest, a.k, bars.data(), [&](int64_t i, const std::vector<Key<C>>& keys, int64_t) {
      activate_token(f_of(places[i]), int64_t(keys.size()) < a.k ? 0 : keys[a.k - 1]);
    })(threads);
  }

 private:
  int64_t token(int64_t i) const { return a.tokens ? a.tokens[i] : i; }
  C* f_of(int64_t i) const { return f + i * edited.m; }

  void edited_z(Range range) const {
    Panel<C> panel(a, range.begin, range.end - range.begin);
    panel.read(0, panel.n);
    const C* bias = static_cast<const C*>(a.rows);
    const auto visit = [&](int64_t j, int64_t count, const C* products) {
      for (int64_t i = j; i < j + count; ++i) {
        const C b = bias[edited.features[i] * a.row_stride];
        for (int64_t t = 0; t < panel.n; ++t)
          f_of(range.begin + t)[i] = pre_activation(products[t * kTileFeatures + i - j], panel.scale[t], b);
      }
    };
    with_encoder_type<C>(a, [&](auto row) { stream<decltype(row)>(panel, a, edited.features, 0, edited.m, visit); });
  }

  // Tokens without a positive z have no active edited feature. For the others nothing below the smallest positive
  // one matters: it comes after all of them.
  void set_aside_the_inactive() {
    constexpr C none = std::numeric_limits<C>::infinity();
    for (int64_t i = 0; i < a.n; ++i) {
      C* z = f_of(i);
      C least = none;
      for (int64_t j = 0; j < edited.m; ++j)
        if (z[j] > 0) least = std::min(least, z[j]);
      if (least == none) {
        std::fill(z, z + edited.m, C(0));
        continue;
      }
      places.push_back(i), tokens.push_back(int32_t(token(i)));
      bars.push_back(std::nextafter(least, C(0)));
    }
  }

  // last: the key of the last feature that is active; 0 if all are.
  void activate_token(C* z, Key<C> last) const {
    const C* row = static_cast<const C*>(edited.rows);
    for (int64_t j = 0; j < edited.m; ++j, row += N_COLUMNS) {
      const bool active = !edited.ranked || (z[j] > 0 && key_of(z[j], int32_t(edited.features[j])) >= last);
      z[j] = active ? activate(row, z[j]) : C(0);
    }
  }

  const EncodeArgs& a;
  const EditedRows& edited;
  C* f;
  // the tokens whose edited features compete: their places among all, numbers, and bars on competitors
  std::vector<int64_t> places;
  std::vector<int32_t> tokens;
  std::vector<C> bars;
};

void topk_activations(const EncodeArgs& args, const EditedRows& edited, int threads, void* f) {
  if (args.tensor_type == Scalar::DOUBLE)
    TopkActivations<double>(args, edited, static_cast<double*>(f))(threads);
  else
    TopkActivations<float>(args, edited, static_cast<float*>(f))(threads);
}

}  // namespace sparsesteer::SPARSESTEER_ISA
