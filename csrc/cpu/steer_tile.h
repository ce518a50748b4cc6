// steer on one tile of tokens: what activation_tile.h finds is edited and added. Every phase takes a range, so that one
// thread can run a whole tile or all threads can share it, with a barrier between the phases.
#pragma once

#include <algorithm>
#include <cmath>

#include "activation_tile.h"
#include "dense_sums.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int kMaxGroups = kMostTokens / 2 + 2;
constexpr int kColumnGroupOneToken = SPARSESTEER_VECTOR_BYTES == 64 ? 16 : 8;

template <typename T, typename R, typename C>
class Tile : public ActivationTile<T, R, C> {
  using Base = ActivationTile<T, R, C>;
  using Base::a, Base::tokens, Base::n, Base::stride, Base::delta, Base::scale_out, Base::strength;
  using Base::bank_row, Base::table_row;

  using Dense = DenseSums<C, kMostTokens>;

 public:
  // Bytes that a tile of so many tokens needs; as many as the base's beside them for every thread at work on it.
  static size_t shared_bytes(const SteerArgs& a, int64_t tokens) {
    return Base::shared_bytes(a, tokens) + room<C>(a.preserve_norm ? tokens * a.d_out : 0);
  }
  static int64_t term_count(const SteerArgs& a, int64_t tokens) { return (tokens / kTokenGroup + 3) * a.m; }

  Tile(const SteerArgs& args, const int32_t* tokens, int64_t n, char* shared, char* own)
      : Base(args, tokens, n, shared, own), sums(reinterpret_cast<C*>(shared + Base::shared_bytes(args, n))) {}

  // delta[j][t], the change of the activations of rows [j0, j1), for all tokens.
  void encode(int64_t j0, int64_t j1) {
    this->find_activations(j0, j1);
    for (int64_t j = j0; j < j1; ++j) edit_activations(table_row(j), n, delta + j * stride);
  }

  // out for columns [c0, c1) of all tokens; with preserve_norm only the edited vector, for finish(). A panel of
  // decoder columns stays in cache while all groups of tokens use it. terms: room for term_count().
  void add(int64_t c0, int64_t c1, Term* terms) const {
    Group groups[kMaxGroups];
    int count = 0;
    for (int64_t t = 0; t < n; t += groups[count++].size) groups[count] = group_from(t, terms + count * a.m);
    int64_t c = c0;
    if (mostly_changed(groups, count))
      for (; c + Dense::kColumns <= c1; c += Dense::kColumns) add_panel(groups, count, c);
    const int64_t panel = n == 1 ? c1 - c : Dense::kColumns;
    for (; c < c1; c += panel)
      for (int g = 0; g < count; ++g) add_group(groups[g], c, std::min(c1, c + panel));
  }

  // preserve_norm: out = edited vector times ||w|| / ||edited vector||.
  void finish(int64_t t0, int64_t t1) const {
    for (int64_t t = t0; t < t1; ++t) {
      if (touched(t))
        put_at_length_of(into(t), sums + t * a.d_out, a.d_out, out(t));
      else
        copy_row(t, 0, a.d_out);
    }
  }

 private:
  const T* into(int64_t t) const { return static_cast<const T*>(a.into) + tokens[t] * a.into_stride; }
  T* out(int64_t t) const { return static_cast<T*>(a.out) + tokens[t] * a.out_stride; }

  bool touched(int64_t t) const {
    if (a.delta_bias) return true;
    for (int64_t j = 0; j < a.m; ++j)
      if (delta[j * stride + t] != 0) return true;
    return false;
  }

  // s * r of token t.
  C amount(int64_t t) const {
    if (a.scale_rule != int(OutputScale::GAP_FILL)) return strength[t] * scale_out[t];
    C total = 0;
    for (int64_t j = 0; j < a.m; ++j) total += delta[j * stride + t];
    return total != 0 ? strength[t] * (C(a.gap) / total) : C(0);
  }

  // Tokens that are added together, and the rows that change any of them.
  struct Group {
    int64_t t;
    int size;
    const Term* terms;
    int64_t n_terms;
    bool changes[kTokenGroup];
    C amounts[kTokenGroup];
  };

  Group group_from(int64_t t, Term* terms) const {
    Group group{t, n - t >= kTokenGroup ? kTokenGroup : n - t >= 2 ? 2 : 1, terms, 0, {}, {}};
    std::fill(group.changes, group.changes + group.size, a.delta_bias != nullptr);
    for (int64_t j = 0; j < a.m; ++j) {
      bool any = false;
      for (int g = 0; g < group.size; ++g) {
        const bool nonzero = delta[j * stride + t + g] != 0;
        group.changes[g] |= nonzero, any |= nonzero;
      }
      terms[group.n_terms] = {int32_t(bank_row(j)), int32_t(j)};
      group.n_terms += any;
    }
    for (int g = 0; g < group.size; ++g)
      if (group.changes[g]) group.amounts[g] = amount(t + g);
    return group;
  }

  // True if most rows change most tokens, and copies of them pay.
  bool mostly_changed(const Group* groups, int count) const {
    int64_t total = 0;
    for (int g = 0; g < count; ++g) total += groups[g].n_terms;
    return n >= kPackedTokens && 2 * total >= count * a.m;
  }

  // Columns [c, c + Dense::kColumns) of all tokens.
  void add_panel(const Group* groups, int count, int64_t c) const {
    Dense dense;
    const auto sums = dense.sums();
    start<1, kColumnGroup>(c, kLanes<C>, *reinterpret_cast<Vec<C>(*)[1][kColumnGroup]>(sums));
    for (int64_t t = 1; t < n; ++t) std::memcpy(sums[t], sums[0], sizeof *sums);
    dense.add(n, a.m, [&](int64_t j) { return decoder() + bank_row(j) * a.d_out + c; }, delta, stride);
    for (int g = 0; g < count; ++g)
      for (int t = 0; t < groups[g].size; ++t) write_token(groups[g], t, c, kLanes<C>, sums[groups[g].t + t]);
  }

  void add_group(const Group& group, int64_t c0, int64_t c1) const {
    if (group.size == kTokenGroup) {
      add_columns<kTokenGroup, kColumnGroup>(group, c0, c1);
    } else if (group.size == 2) {
      add_columns<2, kColumnGroup>(group, c0, c1);
    } else if (n > 1) {
      add_columns<1, kColumnGroup>(group, c0, c1);
    } else {
      add_columns<1, kColumnGroupOneToken>(group, c0, c1);
    }
  }

  // Columns [c, c1), CV vectors at a time, then one, then what is left.
  template <int TG, int CV>
  void add_columns(const Group& group, int64_t c, int64_t c1) const {
    const C* first = delta + group.t;
    for (; c + CV * kLanes<C> <= c1; c += CV * kLanes<C>) {
      Vec<C> y[TG][CV];
      start<TG, CV>(c, kLanes<C>, y);
      sum_block<C, R, TG, CV>(decoder(), a.d_out, first, stride, group.terms, group.n_terms, c, y);
      write<TG, CV>(group, c, kLanes<C>, y);
    }
    if constexpr (CV > 1) {
      add_columns<TG, 1>(group, c, c1);
    } else if (c < c1) {
      Vec<C> y[TG][1];
      start<TG, 1>(c, c1 - c, y);
      sum_tail<C, R, TG>(decoder(), a.d_out, first, stride, group.terms, group.n_terms, c, y);
      write<TG, 1>(group, c, c1 - c, y);
    }
  }

  template <int TG, int CV>
  SPARSESTEER_INLINE void start(int64_t c, int64_t count, Vec<C> (&y)[TG][CV]) const {
    const C* bias = static_cast<const C*>(a.delta_bias);
    for (int v = 0; v < CV; ++v) {
      const Vec<C> first = bias ? part<C>(bias + c + v * kLanes<C>, count) : Vec<C>{};
      for (int t = 0; t < TG; ++t) y[t][v] = first;
    }
  }

  template <int TG, int CV>
  SPARSESTEER_INLINE void write(const Group& group, int64_t c, int64_t count, const Vec<C> (&y)[TG][CV]) const {
    for (int g = 0; g < TG; ++g) write_token(group, g, c, count, y[g]);
  }

  // What was summed for token g of a group, in CV vectors from column c on, the last one `count` wide.
  template <int CV>
  SPARSESTEER_INLINE void write_token(const Group& group, int g, int64_t c, int64_t count,
                                      const Vec<C> (&y)[CV]) const {
    const int64_t t = group.t + g;
    if (!group.changes[g]) return copy_row(t, c, c + (CV - 1) * kLanes<C> + count);
    for (int v = 0; v < CV; ++v) {
      const int64_t column = c + v * kLanes<C>;
      const Vec<C> result = part<C>(into(t) + column, count) + y[v] * group.amounts[g];
      if (a.preserve_norm)
        put<C>(sums + t * a.d_out + column, result, count);
      else
        put<C>(out(t) + column, result, count);
    }
  }

  void copy_row(int64_t t, int64_t c0, int64_t c1) const {
    if (out(t) != into(t)) std::memcpy(out(t) + c0, into(t) + c0, (c1 - c0) * sizeof(T));
  }

  const R* decoder() const { return static_cast<const R*>(a.decoder); }

  C* sums;
};

}  // namespace sparsesteer::SPARSESTEER_ISA
