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
#include "pairwise_sum.h"

namespace sparsesteer {

namespace {

constexpr double kNoise = 1e-10;                                           // of a column whose mean size is 1
constexpr double kConstant = 10 * std::numeric_limits<double>::epsilon();  // a standard deviation that is none
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kNear = 8;  // samples on either side that are looked at first

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
      : classes(classes),
        n(classes.labels.size()),
        x(n),
        buffer(n),
        padded(n + 2 * kNear, kInfinity),
        of_class(n),
        place(n),
        radius(n),
        ends(classes.counts.size()) {
    silent.reserve(n), active.reserve(n), sorted.reserve(n);
  }

  // noise [n] and its rising order.
  template <typename T>
  double estimate(const T* column, const double* noise, const int32_t* order) {
    std::copy(column, column + n, x.begin());
    scale();
    sort_with_noise(noise, order);
    part_classes();
    double of_neighbours = 0;
    for (size_t label = 0; label < ends.size(); ++label) {
      const int64_t count = classes.counts[label], first = ends[label] - count;
      if (count == 0) continue;
      find_radii(of_class.data() + first, count, radius.data() + first);
      for (int64_t i = first; i < ends[label]; ++i)
        of_neighbours += classes.digammas[samples_within(place[i], radius[i])];
    }
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

  // The values of each class in a row, and where each stands among all.
  void part_classes() {
    int64_t begin = 0;
    for (size_t label = 0; label < ends.size(); ++label) ends[label] = begin, begin += classes.counts[label];
    double* all = padded.data() + kNear;
    for (int64_t i = 0; i < classes.n_counted; ++i) {
      const int64_t to = ends[sorted[i].label]++;
      of_class[to] = all[i] = sorted[i].value;
      place[to] = i;
    }
  }

  // Just below the distance to the k-th neighbour: of all k + 1 in a row around it, those that reach the least far.
  void find_radii(const double* v, int64_t count, double* found) const {
    const int64_t k = classes.neighbors(count);
    for (int64_t i = 0; i < count; ++i) {
      double least = kInfinity;
      for (int64_t first = std::max<int64_t>(0, i - k); first <= std::min(i, count - 1 - k); ++first)
        least = std::min(least, std::max(v[i] - v[first], v[first + k] - v[i]));
      found[i] = just_below(least);
    }
  }

  // How many of all are no further than r from the one at a place, itself counted. Few are: the nearest are compared
  // without branches, and only where one of the last of these is within, those beyond.
  int64_t samples_within(int64_t i, double r) const {
    const double* nearest = padded.data() + i;  // kNear before it, itself and kNear - 1 behind it
    const double value = nearest[kNear];
    int64_t count = 0;
    for (int j = 0; j < 2 * kNear; ++j) count += std::abs(nearest[j] - value) <= r;
    const double *left = nearest, *right = nearest + 2 * kNear - 1;
    const double *begin = padded.data() + kNear, *last = begin + classes.n_counted - 1;
    for (; left > begin && value - left[0] <= r && value - left[-1] <= r; --left) ++count;
    for (; right < last && right[0] - value <= r && right[1] - value <= r; ++right) ++count;
    return count;
  }

  const Classes& classes;
  const int64_t n;
  std::vector<double> x, buffer;
  std::vector<double> padded;  // all that are counted, risen, between kNear that are infinitely far
  std::vector<double> of_class;
  std::vector<int64_t> place;
  std::vector<double> radius;
  std::vector<int64_t> ends;  // of each class in the three before
  std::vector<Sample> silent, active, sorted;
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
