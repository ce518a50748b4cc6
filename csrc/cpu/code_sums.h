// Sums of decoder rows weighted by codes. A column of a token is added up in the order of its codes whatever the
// batch, the threads or the form of the loop, so that its bits depend on these alone.
#pragma once

#include <algorithm>

#include "code_spans.h"
#include "shares.h"
#include "steer_blocks.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int kRowsTogether = 8;
constexpr int64_t kBandRows = 512;  // a band of decoder rows in a panel of columns stays in the second-level cache
constexpr int64_t kPanelBytes = 1024;
constexpr int64_t kUsesOfARow = 4;  // on average, from which on bands pay

// sums[t] += the sum of codes of token t, [n, d_out] with contiguous rows.
template <typename C, typename R>
class CodeSums {
 public:
  CodeSums(const void* decoder, int64_t f, int64_t d_out, const CodeSpan<C>* codes, int64_t n, C* sums)
      : decoder(static_cast<const R*>(decoder)), f(f), d_out(d_out), codes(codes), n(n), sums(sums) {}

  void add(Range columns) const {
    int64_t total = 0;
    for (int64_t t = 0; t < n; ++t) total += in_order(t) ? codes[t].size() : 0;
    const bool bands = total >= kUsesOfARow * f;
    for (int64_t t = 0; t < n; ++t)
      if (!bands || !in_order(t)) gather(t, codes[t], columns);
    if (bands) add_bands(columns);
  }

 private:
  bool in_order(int64_t t) const { return are_many(codes[t].size(), f); }

  // Band after band of decoder rows, each used by all tokens with many codes while it is in cache.
  void add_bands(Range columns) const {
    constexpr int64_t panel = kPanelBytes / sizeof(R);
    std::vector<CodeSpan<C>> band(n);
    for (int64_t t = 0; t < n; ++t) band[t].end = in_order(t) ? codes[t].begin : codes[t].end;
    for (int64_t row = 0; row < f; row += kBandRows) {
      const int64_t rows = std::min(kBandRows, f - row);
      for (int64_t t = 0; t < n; ++t) {
        band[t].begin = band[t].end;
        while (band[t].end < codes[t].end && band[t].end->index < row + rows) ++band[t].end;
      }
      for (int64_t c = columns.begin; c < columns.end; c += panel)
        add_band(band.data(), row, rows, {c, std::min(columns.end, c + panel)});
    }
  }

  void add_band(const CodeSpan<C>* band, int64_t row, int64_t rows, Range columns) const {
    for (int64_t t = 0; t < n; t += kTokenGroup) {
      const int64_t group = std::min<int64_t>(kTokenGroup, n - t);
      int64_t total = 0;
      for (int64_t g = 0; g < group; ++g) total += band[t + g].size();
      if (2 * total >= rows * kTokenGroup)
        multiply(t, band + t, group, row, rows, columns);
      else
        for (int64_t g = 0; g < group; ++g) gather(t + g, band[t + g], columns);
    }
  }

  // Most of the band is active: codes with their zeros, as a dense matrix.
  void multiply(int64_t t, const CodeSpan<C>* band, int64_t group, int64_t row, int64_t rows, Range columns) const {
    C amounts[kBandRows][kTokenGroup] = {};
    Term terms[kBandRows];
    for (int64_t i = 0; i < rows; ++i) terms[i] = {int32_t(row + i), int32_t(i)};
    for (int64_t g = 0; g < group; ++g)
      for (const Code<C>* code = band[g].begin; code < band[g].end; ++code) amounts[code->index - row][g] = code->value;
    int64_t c = columns.begin;
    for (; c + kColumnGroup * kLanes<C> <= columns.end; c += kColumnGroup * kLanes<C>)
      multiply_block<kColumnGroup>(t, group, amounts[0], terms, rows, c);
    for (; c + kLanes<C> <= columns.end; c += kLanes<C>) multiply_block<1>(t, group, amounts[0], terms, rows, c);
    if (c < columns.end)
      for (int64_t g = 0; g < group; ++g) gather(t + g, band[g], {c, columns.end});
  }

  template <int CV>
  void multiply_block(int64_t t, int64_t group, const C* amounts, const Term* terms, int64_t rows, int64_t c) const {
    Vec<C> y[kTokenGroup][CV] = {};
    for (int64_t g = 0; g < group; ++g)
      for (int v = 0; v < CV; ++v) y[g][v] = load(sums + (t + g) * d_out + c + v * kLanes<C>);
    sum_block<C, R, kTokenGroup, CV>(decoder, d_out, amounts, kTokenGroup, terms, rows, c, y);
    for (int64_t g = 0; g < group; ++g)
      for (int v = 0; v < CV; ++v) store(sums + (t + g) * d_out + c + v * kLanes<C>, y[g][v]);
  }

  void gather(int64_t t, CodeSpan<C> span, Range columns) const {
    C* target = sums + t * d_out;
    for (; span.size() >= kRowsTogether; span.begin += kRowsTogether)
      add_rows<kRowsTogether>(span.begin, target, columns);
    for (; span.size() >= 2; span.begin += 2) add_rows<2>(span.begin, target, columns);
    if (span.size() == 1) add_rows<1>(span.begin, target, columns);
  }

  // Several rows at once: as many streams that the hardware fetches ahead, and fewer passes over the target.
  template <int N>
  void add_rows(const Code<C>* code, C* target, Range columns) const {
    const R* row[N];
    for (int i = 0; i < N; ++i) row[i] = decoder + code[i].index * d_out + columns.begin;
    target += columns.begin;
    each_vector<C>(columns.end - columns.begin, [&](int64_t c, int64_t count) {
      Vec<C> y = part<C>(target + c, count);
      for (int i = 0; i < N; ++i) y += part<C>(row[i] + c, count) * code[i].value;
      put<C>(target + c, y, count);
    });
  }

  const R* decoder;  // [f, d_out]
  int64_t f, d_out;
  const CodeSpan<C>* codes;
  int64_t n;
  C* sums;
};

}  // namespace sparsesteer::SPARSESTEER_ISA
