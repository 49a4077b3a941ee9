// Note [Far centroids]
// One row of a gallery that is a million times as long as all others becomes a centroid of its own, and the
// mean of all centroids is then far from every other one. So the mean is that of most: without those that are
// many times as far from it as the median, once more without those that are then, until there are none. And a
// list's error holds its own length only, never the longest one's.
//
// Farther than kFarthest, products and squares leave the floats. With distances no row that is scored at all,
// of a length r below a quarter of that, has such a list as its nearest: its score is at most r |d| - |d|^2 /
// 2 and that less than -kFarthest^2 / 4, which it counts as; others are kLongest at most from the mean.
#include "shifted_centroids.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "distances.h"

namespace fct::assign {
namespace {

constexpr float kFloatRounding = 0x1p-24f;
constexpr float kLongest = 1e17f, kFarthest = 1e18f;  // no product comes near the largest float
constexpr float kFarOff = 8;                          // times the median

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

float length_of(const float* values, std::size_t count) {
  return static_cast<float>(std::sqrt(squared_length(values, count)) * 1.0001);
}

std::vector<float> mean_of(const Centroids& centroids, const std::vector<std::size_t>& lists) {
  std::vector<double> sums(at(centroids.dim));
  for (std::size_t list : lists)
    for (std::size_t k = 0; k < sums.size(); ++k)
      sums[k] += static_cast<double>(centroids.values[list * sums.size() + k]);
  std::vector<float> mean;
  for (double sum : sums) mean.push_back(static_cast<float>(sum / static_cast<double>(lists.size())));
  return mean;
}

float median_of(std::vector<float> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The mean of most, and the longest of these less it.
std::pair<std::vector<float>, float> mean_of_most(const Centroids& centroids) {
  std::vector<std::size_t> most(at(centroids.count));
  std::iota(most.begin(), most.end(), 0);
  std::vector<float> shifted(at(centroids.dim));
  for (;;) {
    auto mean = mean_of(centroids, most);
    std::vector<float> lengths;
    for (std::size_t list : most) {
      subtract(centroids.values.data() + list * shifted.size(), mean.data(), shifted.data(), shifted.size());
      lengths.push_back(length_of(shifted.data(), shifted.size()));
    }
    const float limit = kFarOff * median_of(lengths) + ShiftedCentroids::kShortest;
    std::vector<std::size_t> left;
    for (std::size_t i = 0; i < most.size(); ++i)
      if (lengths[i] <= limit) left.push_back(most[i]);
    if (left.size() == most.size())
      return {std::move(mean), *std::max_element(lengths.begin(), lengths.end())};
    most = std::move(left);
  }
}

}  // namespace

ShiftedCentroids::ShiftedCentroids(const Centroids& centroids, float rounding)
    : count(centroids.count), dim(centroids.dim), metric(centroids.metric), values(centroids.values.size()) {
  std::tie(mean, longest) = mean_of_most(centroids);
  const std::size_t width = at(dim);
  mean_length = length_of(mean.data(), width);
  for (std::size_t list = 0; list < at(count); ++list) {
    const Scored scored = score(centroids.values.data() + list * width, values.data() + list * width);
    lengths.push_back(scored.length);
    biases.push_back(scored.bias);
  }
  sum_rounding_ = static_cast<float>(dim + 16) * 2 * kFloatRounding;
  own_error_ = 1e-18f;
  if (metric == Metric::kL2) {
    own_rounding = sum_rounding_;
    are_safe = longest < kLongest;
  } else {
    sum_rounding_ *= 2;  // of the product that is the distance, too
    own_rounding = 0;
    own_error_ += sum_rounding_ * mean_length;
    are_safe = std::max(mean_length, *std::max_element(lengths.begin(), lengths.end())) < kLongest;
  }
  row_rounding_ = sum_rounding_ + rounding;
}

float ShiftedCentroids::shift(const float* row, float* shifted) const {
  subtract(row, mean.data(), shifted, at(dim));
  return length_of(shifted, at(dim));
}

ShiftedCentroids::Scored ShiftedCentroids::score(const float* centroid, float* shifted) const {
  // What is so short that its products may vanish counts as longer than it is.
  const float length = std::max(shift(centroid, shifted), kShortest);
  if (length >= kFarthest) {
    std::fill_n(shifted, dim, 0.f);
    return {kFarthest, metric == Metric::kL2 ? -kFarthest * kFarthest / 4 : 0};
  }
  const double bias = metric == Metric::kL2 ? -squared_length(shifted, at(dim)) / 2
                                            : precise_dot(mean.data(), shifted, at(dim));
  return {length, static_cast<float>(bias)};
}

float ShiftedCentroids::error_for(float length) const { return error_for(length, row_rounding_); }

float ShiftedCentroids::float_error_for(float length) const { return error_for(length, sum_rounding_); }

float ShiftedCentroids::error_for(float length, float rounding) const {
  const bool is_safe = are_safe && (length == 0 || (length > kShortest && length < kLongest));
  return is_safe ? rounding * length + own_error_ : std::numeric_limits<float>::infinity();
}

// For distances of one metric the score is half of what is missing to the row's squared length.
float ShiftedCentroids::settling_error(float length, float score) const {
  return metric == Metric::kL2 ? sum_rounding_ * std::max(length * length - 2 * score, 0.f)
                               : sum_rounding_ * (length + mean_length) * mean_length;
}

}  // namespace fct::assign
