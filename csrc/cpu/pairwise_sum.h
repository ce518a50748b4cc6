// Sums as numpy makes them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sparsesteer {

// numpy's sum over contiguous numbers, in its order: a last bit decides between neighbours that are equally far.
inline double pairwise_sum(const double* x, int64_t n) {
  if (n > 128) {
    const int64_t half = n / 2 - n / 2 % 8;
    return pairwise_sum(x, half) + pairwise_sum(x + half, n - half);
  }
  if (n < 8) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    return sum;
  }
  double r[8];
  std::copy(x, x + 8, r);
  int64_t i = 8;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) r[j] += x[i + j];
  double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  for (; i < n; ++i) sum += x[i];
  return sum;
}

}  // namespace sparsesteer
