#pragma once

#include <cstdint>
#include <vector>

#include "fct/assign.h"

namespace fct::assign {

// Centroids less the mean of most, and what a score's error is made of. See Notes [Nearest list] and
// [Far centroids].
struct ShiftedCentroids {
  static constexpr float kShortest = 1e-12f;  // of what is multiplied: no product vanishes that counts

  // `rounding`: what a score loses by rounding both factors, for a row and a centroid of length 1.
  ShiftedCentroids(const Centroids& centroids, float rounding);

  // Writes a row less the mean and returns its length, not too short.
  float shift(const float* row, float* shifted) const;

  struct Scored {
    float length, bias;  // the first not too short
  };
  // Writes what a row less the mean is multiplied with for the score of a centroid.
  Scored score(const float* centroid, float* shifted) const;

  // Of the scores of a row of that length, for a centroid of length 1; infinity if nothing is known of them.
  float error_for(float length) const;
  // The same of a score that floats were multiplied for.
  float float_error_for(float length) const;
  // Of the score of a list of that length, whatever the row.
  float own_error(float length) const { return own_rounding * length * length; }
  // By how much the scores of two lists may differ at most, beyond their errors, that the distance in float32
  // of such a row may put into the other order, if the better one's is `score`.
  float settling_error(float length, float score) const;

  int count, dim;
  Metric metric;
  std::vector<float> mean, values;     // (dim), (count, dim)
  std::vector<float> biases, lengths;  // (count); lengths not too short
  float mean_length;                   // not too short
  float longest;                       // of the centroids the mean is of
  float own_rounding;                  // of a list of length 1
  bool are_safe;                       // whether scores say anything

 private:
  float error_for(float length, float rounding) const;

  float sum_rounding_, row_rounding_;  // for a row and a centroid of length 1
  float own_error_;                    // for any row and a centroid of length 1
};

}  // namespace fct::assign
