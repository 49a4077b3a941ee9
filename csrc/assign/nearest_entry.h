#pragma once

#include <cstdint>

namespace fct::assign {

constexpr int kGroupRows = 16;  // searched at once, a row in each lane: no lane ever asks another

// The nearest of a codebook's entries for each row of a group, the lowest number among equals. rows is
// (width, kGroupRows), book (Codebooks::kEntries, width), nearest (kGroupRows).
void nearest_entries(const float* rows, const float* book, int width, std::int32_t* nearest);

// Likewise, in two thirds of the time: by half_squares, |entry|^2 / 2 of each, less the product with the row,
// which float32 rounds more coarsely than the distance itself.
void nearest_entries_by_products(const float* rows, const float* book, const float* half_squares, int width,
                                 std::int32_t* nearest);

// Writes rows (count, dim), less centroids[lists[row]] if centroids are given, as groups (dim, kGroupRows),
// the last one filled up with zeros.
void make_groups(const float* rows, std::int64_t count, int dim, const float* centroids,
                 const std::int64_t* lists, float* groups);

inline std::int64_t groups_of(std::int64_t count) { return (count + kGroupRows - 1) / kGroupRows; }

}  // namespace fct::assign
