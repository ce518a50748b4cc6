// mutual_information of continuous columns with discrete labels, by nearest neighbours (Ross 2014).
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../check.h"
#include "../ops.h"

namespace sparsesteer {

namespace {

constexpr double kNoise = 1e-10;                                           // of a column whose mean size is 1
constexpr double kConstant = 10 * std::numeric_limits<double>::epsilon();  // a standard deviation that is none

// numpy's sum over contiguous numbers, in its order: a last bit decides between neighbours that are equally far.
double pairwise_sum(const double* x, int64_t n) {
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

// The largest number below a distance, itself if it is 0.
double just_below(double distance) {
  int64_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  bits -= distance > 0;
  std::memcpy(&distance, &bits, sizeof bits);
  return distance;
}

struct Sample {
  double value;
  int32_t label;
};

// How the samples are labelled, and what of the estimate depends on nothing else.
struct Classes {
  std::vector<int32_t> labels;   // [n], -1 for samples that are left out
  std::vector<int64_t> counts;   // of each class
  std::vector<double> digammas;  // of 0 (unused) to n
  int64_t n_neighbors, n_counted = 0;
  double of_counts = 0;

  Classes(const at::Tensor& labels_tensor, int64_t n_neighbors) : n_neighbors(n_neighbors) {
    const int32_t* given = labels_tensor.const_data_ptr<int32_t>();
    labels.assign(given, given + labels_tensor.numel());
    for (const int32_t label : labels) {
      TORCH_CHECK(label >= -1 && label < int64_t(labels.size()), "mutual_information: label ", label, " of ",
                  labels.size(), " samples");
      if (label >= int64_t(counts.size())) counts.resize(label + 1);
      if (label >= 0) ++counts[label], ++n_counted;
    }
    digammas.assign(labels.size() + 1, -0.57721566490153286);
    for (size_t i = 2; i < digammas.size(); ++i) digammas[i] = digammas[i - 1] + 1.0 / double(i - 1);
    for (const int64_t count : counts) {
      TORCH_CHECK(count != 1, "mutual_information: a class of one sample has no neighbours");
      if (count) of_counts += double(count) * (digammas[neighbors(count)] - digammas[count]);
    }
    if (n_counted) of_counts = digammas[n_counted] + of_counts / double(n_counted);
  }

  int64_t neighbors(int64_t count) const { return std::min(n_neighbors, count - 1); }
};

// One thread's work on one column after the other.
class Estimator {
 public:
  explicit Estimator(const Classes& classes)
      : classes(classes), n(classes.labels.size()), x(n), buffer(n), of_class(n), radius(n) {
    sorted.reserve(n), silent.reserve(n), active.reserve(n);
  }

  // noise [n] and its rising order.
  template <typename T>
  double estimate(const T* column, const double* noise, const int32_t* order) {
    std::copy(column, column + n, x.begin());
    scale();
    sort_with_noise(noise, order);
    double of_neighbours = 0;
    for (size_t label = 0; label < classes.counts.size(); ++label)
      if (classes.counts[label]) of_neighbours += digammas_of_class(int32_t(label));
    return std::max(0.0, classes.of_counts - of_neighbours / double(classes.n_counted));
  }

 private:
  // To a standard deviation of 1, a constant column not at all.
  void scale() {
    const double mean = pairwise_sum(x.data(), n) / double(n);
    TORCH_CHECK(std::isfinite(mean), "mutual_information: columns have NaN or infinite values, or too large ones");
    for (int64_t i = 0; i < n; ++i) buffer[i] = (x[i] - mean) * (x[i] - mean);
    const double deviation = std::sqrt(pairwise_sum(buffer.data(), n) / double(n));
    if (deviation >= kConstant)
      for (double& each : x) each /= deviation;
  }

  // What is 0 stands in the order of the noise already: only the rest is sorted.
  void sort_with_noise(const double* noise, const int32_t* order) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = std::abs(x[i]);
    const double amount = kNoise * std::max(1.0, pairwise_sum(buffer.data(), n) / double(n));
    silent.clear(), active.clear();
    for (int64_t i = 0; i < n; ++i) {
      const int32_t sample = order[i], label = classes.labels[sample];
      if (label < 0) continue;
      (x[sample] == 0 ? silent : active).push_back({x[sample] + amount * noise[sample], label});
    }
    const auto below = [](const Sample& a, const Sample& b) { return a.value < b.value; };
    std::sort(active.begin(), active.end(), below);
    sorted.resize(silent.size() + active.size());
    std::merge(silent.begin(), silent.end(), active.begin(), active.end(), sorted.begin(), below);
  }

  // The sum over a class of digamma(samples of any class closer than the n-th neighbour within it, itself counted).
  double digammas_of_class(int32_t label) {
    int64_t count = 0;
    for (const Sample& sample : sorted)
      if (sample.label == label) of_class[count++] = sample.value;
    find_radii(count);
    double sum = 0;
    int64_t first = 0, end = 0;  // of the samples within the radius; they move on as the class's samples rise
    const int64_t all = sorted.size();
    for (int64_t i = 0; i < count; ++i) {
      const double value = of_class[i], r = radius[i];
      while (first > 0 && value - sorted[first - 1].value <= r) --first;
      while (value - sorted[first].value > r) ++first;
      while (end > 0 && sorted[end - 1].value - value > r) --end;
      while (end < all && sorted[end].value - value <= r) ++end;
      sum += classes.digammas[end - first];
    }
    return sum;
  }

  // Just below the distance to the k-th neighbour: of all k + 1 in a row, those that reach the least far.
  void find_radii(int64_t count) {
    const int64_t k = classes.neighbors(count);
    const double* v = of_class.data();
    for (int64_t i = 0, first = 0; i < count; ++i) {
      while (first < i && first + k + 1 < count && v[first + k + 1] - v[i] < v[i] - v[first]) ++first;
      radius[i] = just_below(std::max(v[i] - v[first], v[first + k] - v[i]));
    }
  }

  const Classes& classes;
  const int64_t n;
  std::vector<double> x, buffer, of_class, radius;
  std::vector<Sample> sorted, silent, active;
};

template <typename T>
void estimate_columns(const at::Tensor& columns, const Classes& classes, const at::Tensor& noise,
                      const at::Tensor& order, const at::Tensor& noise_rows, at::Tensor& found) {
  const int64_t n = columns.size(1), width = noise.size(0);
  const T* values = columns.const_data_ptr<T>();
  const int64_t* rows = noise_rows.const_data_ptr<int64_t>();
  double* information = found.mutable_data_ptr<double>();
  at::parallel_for(0, columns.size(0), 8, [&](int64_t begin, int64_t end) {
    Estimator estimator(classes);
    for (int64_t f = begin; f < end; ++f) {
      const int64_t row = rows[f];
      TORCH_CHECK(row >= 0 && row < width, "mutual_information: row ", row, " of ", width, " rows of noise");
      information[f] = estimator.estimate(values + f * n, noise.const_data_ptr<double>() + row * n,
                                          order.const_data_ptr<int32_t>() + row * n);
    }
  });
}

void check_noise(const at::Tensor& noise, const at::Tensor& order, int64_t n) {
  if (order.numel() == 0) return;
  TORCH_CHECK(std::isfinite(noise.sum().item<double>()), "mutual_information: noise has NaN or infinite values");
  TORCH_CHECK(order.min().item<int32_t>() >= 0 && order.max().item<int32_t>() < n,
              "mutual_information: order should hold samples from 0 to ", n - 1);
}

}  // namespace

at::Tensor mutual_information(const at::Tensor& columns_any, const at::Tensor& labels, const at::Tensor& noise,
                              const at::Tensor& order, const at::Tensor& noise_rows, int64_t n_neighbors) {
  TORCH_CHECK(columns_any.dim() == 2 && noise.dim() == 2, "mutual_information: columns and noise should be matrices");
  TORCH_CHECK(n_neighbors >= 1, "mutual_information: n_neighbors should be positive, got ", n_neighbors);
  const int64_t f = columns_any.size(0), n = columns_any.size(1);
  check_shape("mutual_information", "labels", labels, {n});
  check_shape("mutual_information", "noise", noise, {noise.size(0), n});
  check_shape("mutual_information", "order", order, noise.sizes());
  check_shape("mutual_information", "noise_rows", noise_rows, {f});
  check_dtype("mutual_information", "labels", labels, at::kInt);
  check_dtype("mutual_information", "noise", noise, at::kDouble);
  check_dtype("mutual_information", "order", order, at::kInt);
  check_dtype("mutual_information", "noise_rows", noise_rows, at::kLong);
  const at::Tensor columns = columns_any.contiguous(), given = labels.contiguous();
  const Classes classes(given, n_neighbors);
  check_noise(noise, order, n);
  at::Tensor found = at::zeros({f}, columns.options().dtype(at::kDouble));
  if (f == 0 || classes.n_counted == 0) return found;
  const at::Tensor rows = noise_rows.contiguous(), noise_there = noise.contiguous(), order_there = order.contiguous();
  if (columns.scalar_type() == at::kFloat)
    estimate_columns<float>(columns, classes, noise_there, order_there, rows, found);
  else if (columns.scalar_type() == at::kDouble)
    estimate_columns<double>(columns, classes, noise_there, order_there, rows, found);
  else
    TORCH_CHECK(false, "mutual_information: columns should be float or double, got ", columns.scalar_type());
  return found;
}

}  // namespace sparsesteer
