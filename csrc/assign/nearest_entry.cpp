#include "nearest_entry.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "cpu/vectors.h"
#include "fct/assign.h"

namespace fct::assign {
namespace {

constexpr int kAtOnce = 4;  // entries: sums that do not wait for each other
static_assert(Codebooks::kEntries % kAtOnce == 0);

// half_squares is null exactly if distances are wanted.
template <int kLanes, int kWidth, bool kDistances>
[[gnu::always_inline]] inline void search(const float* rows, const float* book, const float* half_squares,
                                          int run_time_width, std::int32_t* nearest) {
  using Floats = typename cpu::Vector<kLanes>::Floats;
  using Ints = typename cpu::Vector<kLanes>::Ints;
  constexpr int kVectors = kGroupRows / kLanes < 2 ? kGroupRows / kLanes : 2;  // what fits into registers
  const int width = kWidth > 0 ? kWidth : run_time_width;
  for (int first = 0; first < kGroupRows; first += kVectors * kLanes) {
    Floats least[kVectors];
    Ints where[kVectors] = {}, number{};  // of the entry
    for (int v = 0; v < kVectors; ++v) least[v] = Floats{} + std::numeric_limits<float>::infinity();
    for (int entry = 0; entry < Codebooks::kEntries; entry += kAtOnce) {
      const float* values = book + static_cast<std::ptrdiff_t>(entry) * width;
      Floats sums[kAtOnce][kVectors] = {};
      if constexpr (!kDistances) {
#pragma GCC unroll 4
        for (int i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sums[i][v] = Floats{} + half_squares[entry + i];
      }
      for (int k = 0; k < width; ++k) {
#pragma GCC unroll 4
        for (int i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const Floats row = *reinterpret_cast<const Floats*>(rows + k * kGroupRows + first + v * kLanes);
            if constexpr (kDistances) {
              const Floats difference = row - values[i * width + k];
              sums[i][v] += difference * difference;
            } else {
              sums[i][v] -= row * values[i * width + k];
            }
          }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const Ints nearer = sums[i][v] < least[v];
          least[v] = nearer ? sums[i][v] : least[v];
          where[v] = nearer ? number : where[v];
        }
        number += 1;
      }
    }
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Ints*>(nearest + first + v * kLanes) = where[v];
  }
}

// Common widths with the row's part in registers.
template <int kLanes, bool kDistances>
[[gnu::always_inline]] inline void search_any(const float* rows, const float* book, const float* half_squares,
                                              int width, std::int32_t* nearest) {
  switch (width) {
    case 2:
      return search<kLanes, 2, kDistances>(rows, book, half_squares, width, nearest);
    case 4:
      return search<kLanes, 4, kDistances>(rows, book, half_squares, width, nearest);
    case 8:
      return search<kLanes, 8, kDistances>(rows, book, half_squares, width, nearest);
    default:
      return search<kLanes, 0, kDistances>(rows, book, half_squares, width, nearest);
  }
}

template <int kLanes>
[[gnu::always_inline]] inline void by_distances_with(const float* rows, const float* book, int width,
                                                     std::int32_t* nearest) {
  search_any<kLanes, true>(rows, book, nullptr, width, nearest);
}

template <int kLanes>
[[gnu::always_inline]] inline void by_products_with(const float* rows, const float* book,
                                                    const float* half_squares, int width,
                                                    std::int32_t* nearest) {
  search_any<kLanes, false>(rows, book, half_squares, width, nearest);
}

FCT_BY_LANES(void, by_distances, (const float* rows, const float* book, int width, std::int32_t* nearest),
             (rows, book, width, nearest))
FCT_BY_LANES(void, by_products,
             (const float* rows, const float* book, const float* half_squares, int width,
              std::int32_t* nearest),
             (rows, book, half_squares, width, nearest))

}  // namespace

void nearest_entries(const float* rows, const float* book, int width, std::int32_t* nearest) {
  by_distances(rows, book, width, nearest);
}

void nearest_entries_by_products(const float* rows, const float* book, const float* half_squares, int width,
                                 std::int32_t* nearest) {
  by_products(rows, book, half_squares, width, nearest);
}

void make_groups(const float* rows, std::int64_t count, int dim, const float* centroids,
                 const std::int64_t* lists, float* groups) {
  const auto dims = static_cast<std::size_t>(dim);
  std::fill_n(groups, static_cast<std::size_t>(groups_of(count)) * kGroupRows * dims, 0.f);
  for (std::int64_t row = 0; row < count; ++row) {
    const float* from = rows + static_cast<std::size_t>(row) * dims;
    float* to = groups + static_cast<std::size_t>(row / kGroupRows) * kGroupRows * dims + row % kGroupRows;
    if (centroids != nullptr) {
      const float* centroid = centroids + static_cast<std::size_t>(lists[row]) * dims;
      for (std::size_t k = 0; k < dims; ++k) to[k * kGroupRows] = from[k] - centroid[k];
    } else {
      for (std::size_t k = 0; k < dims; ++k) to[k * kGroupRows] = from[k];
    }
  }
}

}  // namespace fct::assign
