#pragma once

#include <cstdint>
#include <vector>

#include "fct/assign.h"

namespace fct::assign {

// Centroids less their mean, and what a score's error is made of. See Note [Nearest list].
struct ShiftedCentroids {
  // `rounding`: what a score loses by rounding both factors, for a row and a centroid of length 1.
  ShiftedCentroids(const Centroids& centroids, float rounding);

  // Writes a row less the mean and returns its length, not too short.
  float shift(const float* row, float* shifted) const;
  // Of the scores of a row of that length, for a centroid of length 1; infinity if nothing is known of them.
  float error_for(float length) const;
  // The same of a score that floats were multiplied for.
  float float_error_for(float length) const;
  // By how much the scores of two lists may differ at most that the distance in float32 of such a row may put
  // into the other order, if the better one's is `score`.
  float settling_error(float length, float score) const;
  // The bias of a score for a vector less the mean.
  float bias_of(const float* values) const;

  int count, dim;
  Metric metric;
  std::vector<float> mean, values;     // (dim), (count, dim)
  std::vector<float> biases, lengths;  // (count); lengths not too short
  float longest = 0;                   // of lengths

 private:
  float error_for(float length, float rounding) const;

  float sum_rounding_, row_error_, own_error_;  // of the second by the row's length, of the third always
  float mean_length_;
};

}  // namespace fct::assign
