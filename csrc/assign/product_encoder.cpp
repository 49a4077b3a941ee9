#include "product_encoder.h"

#include <algorithm>
#include <limits>

#include "vectors.h"

namespace fct::assign {
namespace {

constexpr int kRows = 16;   // at once, a row in each lane: no lane ever asks another
constexpr int kAtOnce = 4;  // entries: sums that do not wait for each other
static_assert(Codebooks::kEntries % kAtOnce == 0);

// The nearest entry for each of kRows rows; rows is (width, kRows), book (entries, width). The lowest number
// wins among equals.
template <int kLanes, int kWidth>
[[gnu::always_inline]] inline void search(const float* rows, const float* book, int run_time_width,
                                          std::int32_t* nearest) {
  using Floats = typename Vector<kLanes>::Floats;
  using Ints = typename Vector<kLanes>::Ints;
  constexpr int kVectors = kRows / kLanes < 2 ? kRows / kLanes : 2;  // more would not fit into the registers
  const int width = kWidth > 0 ? kWidth : run_time_width;
  for (int first = 0; first < kRows; first += kVectors * kLanes) {
    Floats least[kVectors];
    Ints where[kVectors] = {}, number{};  // of the entry
    for (int v = 0; v < kVectors; ++v) least[v] = Floats{} + std::numeric_limits<float>::infinity();
    for (int entry = 0; entry < Codebooks::kEntries; entry += kAtOnce) {
      const float* values = book + static_cast<std::ptrdiff_t>(entry) * width;
      Floats sums[kAtOnce][kVectors] = {};
      for (int k = 0; k < width; ++k) {
#pragma GCC unroll 4
        for (int i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const Floats row = *reinterpret_cast<const Floats*>(rows + k * kRows + first + v * kLanes);
            const Floats difference = row - values[i * width + k];
            sums[i][v] += difference * difference;
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
template <int kLanes>
[[gnu::always_inline]] inline void nearest_entries_with(const float* rows, const float* book, int width,
                                                        std::int32_t* nearest) {
  switch (width) {
    case 2:
      return search<kLanes, 2>(rows, book, width, nearest);
    case 4:
      return search<kLanes, 4>(rows, book, width, nearest);
    case 8:
      return search<kLanes, 8>(rows, book, width, nearest);
    default:
      return search<kLanes, 0>(rows, book, width, nearest);
  }
}

FCT_BY_LANES(void, nearest_entries, (const float* rows, const float* book, int width, std::int32_t* nearest),
             (rows, book, width, nearest))

}  // namespace

void ProductEncoder::encode(const float* rows, std::int64_t count, const float* centroids,
                            const std::int64_t* lists, std::uint8_t* codes,
                            std::vector<float>& scratch) const {
  const int width = codebooks_.part_dim;
  const std::size_t dims = static_cast<std::size_t>(dim());
  const std::int64_t groups = (count + kRows - 1) / kRows;
  scratch.assign(static_cast<std::size_t>(groups) * kRows * dims, 0.f);  // lanes without a row stay zero
  for (std::int64_t row = 0; row < count; ++row) {
    const float* from = rows + static_cast<std::size_t>(row) * dims;
    float* to = scratch.data() + static_cast<std::size_t>(row / kRows) * kRows * dims + row % kRows;
    if (centroids != nullptr) {
      const float* centroid = centroids + static_cast<std::size_t>(lists[row]) * dims;
      for (std::size_t k = 0; k < dims; ++k) to[k * kRows] = from[k] - centroid[k];
    } else {
      for (std::size_t k = 0; k < dims; ++k) to[k * kRows] = from[k];
    }
  }
  std::int32_t nearest[kRows];
  for (int part = 0; part < codebooks_.parts;
       ++part) {  // outermost: one codebook fits into the nearest cache
    const float* book = codebooks_.values.data() + static_cast<std::size_t>(part) * Codebooks::kEntries *
                                                       static_cast<std::size_t>(width);
    for (std::int64_t group = 0; group < groups; ++group) {
      const float* group_rows =
          scratch.data() + (static_cast<std::size_t>(group) * dims +
                            static_cast<std::size_t>(part) * static_cast<std::size_t>(width)) *
                               kRows;
      nearest_entries(group_rows, book, width, nearest);
      const std::int64_t first = group * kRows, rows_here = std::min<std::int64_t>(kRows, count - first);
      for (std::int64_t lane = 0; lane < rows_here; ++lane)
        codes[(first + lane) * codebooks_.parts + part] = static_cast<std::uint8_t>(nearest[lane]);
    }
  }
}

}  // namespace fct::assign
