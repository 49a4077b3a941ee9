// A tile of rows as searches by integers meet them.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "integer_panels.h"
#include "projection.h"
#include "shifted_centroids.h"

namespace fct::assign {

// What a score's error is made of if only parts of vectors along some directions are multiplied; without a
// projection all of them are. See Note [Leading directions].
class PartErrors {
 public:
  PartErrors(int scored_dim, const Projection* projection);

  float rounding() const { return rounding_; }  // of a score, for a row and a list of length 1
  // Of a row, to be multiplied with a list's length, from what rounding makes uncertain and what was left
  // out.
  float of_row(float error, float rest) const { return std::hypot(balance_ * error, rest); }
  float of_list(float length, float rest) const { return std::hypot(length / balance_, rest); }

 private:
  float rounding_, balance_;
};

class IntegerRows {
 public:
  IntegerRows(int most, int dim, const Projection* projection);

  // rows is (count, dim).
  void fill(const float* rows, std::int64_t count, const ShiftedCentroids& centroids,
            const PartErrors& errors);
  // `chosen` rows, at most kBatch. Whether scores may be uncertain: without, highs are scores.
  Batch batch(const std::int32_t* chosen, int count, bool uncertain) const;

  const float* shifted(std::size_t row) const { return shifted_.data() + row * shifted_width_; }
  float length(std::size_t row) const { return lengths_[row]; }
  float error(std::size_t row) const { return errors_[row]; }  // of a score, for a list of length 1

 private:
  const Projection* projection_;  // null: all of a row is scored
  int scored_dim_;
  std::size_t shifted_width_;
  std::vector<float> shifted_, projected_;  // (most, dim), (most, scored_dim)
  std::vector<std::int32_t> values_;        // (most, pairs)
  std::vector<float> lengths_, scales_, errors_;
};

}  // namespace fct::assign
