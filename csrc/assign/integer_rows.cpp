#include "integer_rows.h"

#include <cmath>
#include <limits>

namespace fct::assign {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// By how much rounding vectors of so many dims to integers changes a score, for lengths of 1.
float integer_rounding(int dim) { return kIntegerRounding * std::sqrt(static_cast<float>(dim)); }

}  // namespace

// Rows leave about twice the share beside the directions that centroids do: then no product is larger for the
// balance than it has to be.
PartErrors::PartErrors(int scored_dim, const Projection* projection)
    : rounding_(integer_rounding(scored_dim) + (projection ? projection->error() : 0)),
      balance_(projection ? std::sqrt(2 / rounding_) : 1) {}

IntegerRows::IntegerRows(int most, int dim, const Projection* projection)
    : projection_(projection),
      scored_dim_(projection ? projection->parts() : dim),
      shifted_width_(at(dim)),
      shifted_(at(most) * at(dim)),
      projected_(projection ? at(most) * at(scored_dim_) : 0),
      values_(at(most) * at(pairs_of(scored_dim_))),
      lengths_(at(most)),
      scales_(at(most)),
      errors_(at(most)) {}

void IntegerRows::fill(const float* rows, std::int64_t count, const ShiftedCentroids& centroids,
                       const PartErrors& errors) {
  for (std::size_t row = 0; row < at(count); ++row)
    lengths_[row] = centroids.shift(rows + row * shifted_width_, shifted_.data() + row * shifted_width_);
  if (projection_) projection_->apply(shifted_.data(), count, projected_.data());
  for (std::size_t row = 0; row < at(count); ++row) {
    const float* scored = shifted(row);
    Projection::Lengths length{lengths_[row], 0};
    if (projection_) {
      scored = projected_.data() + row * at(scored_dim_);
      length = projection_->lengths(lengths_[row], scored);
    }
    float error = errors.of_row(centroids.error_for(lengths_[row]), length.rest);
    if (!std::isfinite(error)) error = std::numeric_limits<float>::infinity();
    errors_[row] = error;
    scales_[row] = std::isfinite(error) ? length.along / kIntegerLength : 0;
    round_to_pairs(scored, scored_dim_, scales_[row], values_.data() + row * at(pairs_of(scored_dim_)));
  }
}

Batch IntegerRows::batch(const std::int32_t* chosen, int count, bool uncertain) const {
  Batch batch;
  batch.count = (count + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
  for (int i = 0; i < batch.count; ++i) {
    const std::size_t row = at(chosen[i < count ? i : 0]);
    batch.rows[i] = values_.data() + row * at(pairs_of(scored_dim_));
    batch.scales[i] = scales_[row];
    batch.errors[i] = uncertain ? errors_[row] : 0.f;
  }
  return batch;
}

}  // namespace fct::assign
