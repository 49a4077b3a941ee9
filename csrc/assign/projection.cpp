// Note [Leading directions]
// Centroids of lists lie near a plane of fewer dimensions than they have, and so do rows, less so. With Q
// orthonormal columns, y . d = Q'y . Q'd + y~ . d~, where y~ and d~ are what the columns leave of a row and a
// centroid; by Cauchy and Schwarz the second product is |y~| |d~| at most. So fewer products bound every
// score, those few lists that may reach the best one are scored in full, and the list found is the same:
// directions change the time only. The error r |y| |d| of what is summed and |y~| |d~| become one product,
// sqrt((K r |y|)^2 + |y~|^2) sqrt((|d| / K)^2 + |d~|^2), by Cauchy and Schwarz again, so that a search of any
// kind has one error of a row and one length of a list.
//
// How many lists are scored in full depends on what is known when they are met: of thousands, most come
// before the row's own one. So all are bounded before any is scored. A cache does not hold that many bounds;
// kept are the largest of each span of panels, and the few spans that may hold the nearest list are bounded
// again.
#include "projection.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/vectors.h"
#include "distances.h"
#include "fct/error.h"
#include "integer_panels.h"

namespace fct::assign {
namespace {

constexpr int kColumns = kPanel;
constexpr int kRows = 4;          // sums that fit into registers
constexpr float kOff = 0x1p-20f;  // of a product of two directions, from 1 or 0: some roundings

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

template <int kLanes>
[[gnu::always_inline]] inline void project_with(const float* const* vectors, const float* columns, int dim,
                                                float* const* out) {
  using Floats = typename cpu::Vector<kLanes>::Floats;
  constexpr int kVectors = 8 / kRows;
  for (int first = 0; first < kColumns; first += kVectors * kLanes) {
    constexpr int kHere = kVectors * kLanes <= kColumns ? kVectors : kColumns / kLanes;
    Floats sums[kRows][kHere] = {};
    for (int k = 0; k < dim; ++k)
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 2
        for (int v = 0; v < kHere; ++v)
          sums[row][v] +=
              vectors[row][k] * *reinterpret_cast<const Floats*>(columns + k * kColumns + first + v * kLanes);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 2
      for (int v = 0; v < kHere; ++v)
        *reinterpret_cast<Floats*>(out[row] + first + v * kLanes) = sums[row][v];
  }
}

FCT_BY_LANES(void, project, (const float* const* vectors, const float* columns, int dim, float* const* out),
             (vectors, columns, dim, out))

}  // namespace

Projection::Projection(const Directions& directions)
    : dim_(directions.dim),
      parts_((directions.count + kColumns - 1) / kColumns * kColumns),
      // Each part is off by dim roundings, and the directions by kOff.
      error_(std::sqrt(static_cast<float>(parts_)) * static_cast<float>(dim_ + 8) * 0x1p-23f +
             static_cast<float>(parts_) * kOff),
      columns_(at(parts_) * at(dim_)) {
  for (int direction = 0; direction < directions.count; ++direction)
    for (int k = 0; k < dim_; ++k)
      columns_[(at(direction / kColumns) * at(dim_) + at(k)) * kColumns + at(direction % kColumns)] =
          directions.values[at(direction) * at(dim_) + at(k)];
  check(directions);
}

void Projection::check(const Directions& directions) const {
  const std::size_t width = at(dim_);
  const auto direction = [&](int i) { return directions.values.data() + at(i) * width; };
  for (int i = 0; i < directions.count; ++i)
    for (int j = 0; j <= i; ++j)
      if (!(std::abs(precise_dot(direction(i), direction(j), width) - (i == j ? 1 : 0)) < kOff))
        throw Error(ErrorKind::kArray,
                    "directions " + std::to_string(j) + " and " + std::to_string(i) + " are not orthonormal");
}

void Projection::apply(const float* vectors, std::int64_t count, float* out) const {
  const float* from[kRows];
  float* to[kRows];
  float unused[kColumns];
  for (std::int64_t first = 0; first < count; first += kRows)
    for (int part = 0; part < parts_; part += kColumns) {
      for (int row = 0; row < kRows; ++row) {
        const bool is_there = first + row < count;
        from[row] = vectors + at(is_there ? first + row : first) * at(dim_);
        to[row] = is_there ? out + at(first + row) * at(parts_) + part : unused;
      }
      project(from, columns_.data() + at(part) * at(dim_), dim_, to);
    }
}

Projection::Lengths Projection::lengths(float length, const float* projected) const {
  const double along = squared_length(projected, at(parts_)),
               all = static_cast<double>(length) * static_cast<double>(length),
               rest = std::max(all * (1 + 2 * static_cast<double>(error_)) - along, 0.);
  return {static_cast<float>(std::sqrt(along) * 1.0001), static_cast<float>(std::sqrt(rest) * 1.0001)};
}

}  // namespace fct::assign
