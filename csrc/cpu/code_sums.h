// Sums of decoder rows weighted by codes. A column of a token is added up by rising index whatever the batch, the
// threads or the form of the loop, so that its bits depend on its codes alone.
#pragma once

#include <algorithm>

#include "code_spans.h"
#include "shares.h"
#include "steer_blocks.h"

namespace sparsesteer::SPARSESTEER_ISA {

constexpr int kGatherVectors = SPARSESTEER_VECTOR_BYTES == 64 ? 16 : 8;
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
    for (int64_t t = 0; t < n; ++t) total += codes[t].size();
    if (total >= kUsesOfARow * f) return add_bands(columns);
    for (int64_t t = 0; t < n; ++t) gather(t, codes[t], columns);
  }

 private:
  // Band after band of decoder rows, each used by all tokens while it is in cache.
  void add_bands(Range columns) const {
    constexpr int64_t panel = kPanelBytes / sizeof(R);
    std::vector<CodeSpan<C>> band(n);
    for (int64_t t = 0; t < n; ++t) band[t].end = codes[t].begin;
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
    if (span.size() == 0) return;
    int64_t c = columns.begin;
    for (; c + kGatherVectors * kLanes<C> <= columns.end; c += kGatherVectors * kLanes<C>)
      gather_block<kGatherVectors>(t, span, c, kLanes<C>);
    for (; c + kLanes<C> <= columns.end; c += kLanes<C>) gather_block<1>(t, span, c, kLanes<C>);
    if (c < columns.end) gather_block<1>(t, span, c, columns.end - c);
  }

  // CV vectors from column c on, the last one `count` lanes wide.
  template <int CV>
  void gather_block(int64_t t, CodeSpan<C> span, int64_t c, int64_t count) const {
    C* target = sums + t * d_out + c;
    Vec<C> y[CV];
    for (int v = 0; v < CV; ++v) y[v] = part<C>(target + v * kLanes<C>, CV > 1 ? kLanes<C> : count);
    for (const Code<C>* code = span.begin; code < span.end; ++code) {
      if (code + kRowsAhead < span.end) {
        const char* next = reinterpret_cast<const char*>(decoder + code[kRowsAhead].index * d_out + c);
        for (int64_t byte = 0; byte < int64_t(CV * kLanes<C> * sizeof(R)); byte += 64) __builtin_prefetch(next + byte);
      }
      const R* row = decoder + code->index * d_out + c;
      for (int v = 0; v < CV; ++v) y[v] += part<C>(row + v * kLanes<C>, CV > 1 ? kLanes<C> : count) * code->value;
    }
    for (int v = 0; v < CV; ++v) put<C>(target + v * kLanes<C>, y[v], CV > 1 ? kLanes<C> : count);
  }

  const R* decoder;  // [f, d_out]
  int64_t f, d_out;
  const CodeSpan<C>* codes;
  int64_t n;
  C* sums;
};

}  // namespace sparsesteer::SPARSESTEER_ISA
