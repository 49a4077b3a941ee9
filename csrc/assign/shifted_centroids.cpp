#include "shifted_centroids.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "distances.h"

namespace fct::assign {
namespace {

constexpr float kFloatRounding = 0x1p-24f;
// Of rows and centroids: no product comes near the largest float, and none vanishes that counts.
constexpr float kShortest = 1e-12f, kLongest = 1e15f;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

bool is_safe(float length) { return length == 0 || (length > kShortest && length < kLongest); }

std::vector<float> mean_of(const Centroids& centroids) {
  std::vector<double> sums(at(centroids.dim));
  for (std::size_t i = 0; i < centroids.values.size(); ++i)
    sums[i % sums.size()] += static_cast<double>(centroids.values[i]);
  std::vector<float> mean;
  for (double sum : sums) mean.push_back(static_cast<float>(sum / centroids.count));
  return mean;
}

float length_of(const float* values, std::size_t count) {
  return static_cast<float>(std::sqrt(squared_length(values, count)) * 1.0001);
}

}  // namespace

ShiftedCentroids::ShiftedCentroids(const Centroids& centroids, float rounding)
    : count(centroids.count),
      dim(centroids.dim),
      metric(centroids.metric),
      mean(mean_of(centroids)),
      values(centroids.values.size()) {
  const std::size_t width = at(dim);
  for (std::size_t list = 0; list < at(count); ++list) {
    float* shifted = values.data() + list * width;
    lengths.push_back(shift(centroids.values.data() + list * width, shifted));
    biases.push_back(bias_of(shifted));
  }
  longest = *std::max_element(lengths.begin(), lengths.end());
  // What is so short that its products may vanish counts as longer than it is.
  for (float& length : lengths) length += longest * 1e-6f + FLT_MIN;
  mean_length_ = length_of(mean.data(), width);
  sum_rounding_ = static_cast<float>(dim + 16) * 2 * kFloatRounding;
  row_error_ = sum_rounding_ + rounding;
  own_error_ = sum_rounding_ * (metric == Metric::kL2 ? longest : mean_length_) + 1e-18f;
}

float ShiftedCentroids::shift(const float* row, float* shifted) const {
  subtract(row, mean.data(), shifted, at(dim));
  return length_of(shifted, at(dim));
}

float ShiftedCentroids::error_for(float length) const { return error_for(length, row_error_); }

float ShiftedCentroids::float_error_for(float length) const { return error_for(length, sum_rounding_); }

float ShiftedCentroids::error_for(float length, float rounding) const {
  return is_safe(length) && is_safe(longest) && own_error_ < kLongest
             ? rounding * length + own_error_
             : std::numeric_limits<float>::infinity();
}

// For distances of one metric the score is half of what is missing to the row's squared length.
float ShiftedCentroids::settling_error(float length, float score) const {
  return metric == Metric::kL2 ? sum_rounding_ * std::max(length * length - 2 * score, 0.f)
                               : sum_rounding_ * (length + mean_length_) * (longest + mean_length_);
}

float ShiftedCentroids::bias_of(const float* vector) const {
  if (metric == Metric::kL2) return static_cast<float>(-squared_length(vector, at(dim)) / 2);
  return static_cast<float>(precise_dot(mean.data(), vector, at(dim)));
}

}  // namespace fct::assign
