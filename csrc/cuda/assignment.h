// What finding lists and codes on a device works with. See Note [Nearest list, on a device].
#pragma once

#include <cstdint>

#include "fct/assign.h"

namespace fct::cuda {

// How far the scores of a row may be off. With r the length of the row and d that of the centroid, both less
// the mean of the centroids: by (by_length * r + always + by_centroid * d) * d; and the distance itself, seen
// as a score, by rounding * (r + reach)^2.
struct ScoreErrors {
  float by_length = 0, always = 0, by_centroid = 0, rounding = 0, reach = 0;
};

// Rows longer than this are not compared by scores: no product comes near the largest float.
constexpr float kSafeLength = 1e17f;

// Centroids in the device's memory.
struct DeviceCentroids {
  const float* values = nullptr;   // (count, dim)
  const float* mean = nullptr;     // (dim)
  const float* lengths = nullptr;  // (count), less the mean; memory goes on up to a multiple of kPadding
  std::int64_t count = 0, dim = 0;
  Metric metric = Metric::kL2;
  ScoreErrors errors{};
};

// What is known about a row after some of the lists: kept on the device from one chunk of them to the next.
struct ListSearch {
  float error = 0;         // of a score, for a centroid of length 1, but for what that adds itself
  float slack = 0;         // of the distance, as a score
  float floor = 0;         // what the best score is at least
  float away = 0;          // how far `list` is away, by the distance itself; NaN: nobody had to know
  std::int32_t list = -1;  // the nearest one so far
};

// Codebooks in the device's memory; each part's is transposed: entries of one dimension lie side by side.
struct DeviceCodebooks {
  const float* values = nullptr;  // (parts, part_dim, Codebooks::kEntries)
  std::int64_t parts = 0, part_dim = 0;
};

// Dense rows in the device's memory, and where what is found about them goes.
struct AssignedRows {
  const float* rows = nullptr;  // (count, dim)
  std::int64_t count = 0;
  std::int64_t* lists = nullptr;      // (count)
  std::uint8_t* codes = nullptr;      // (count, parts)
  std::int64_t* first_bad = nullptr;  // lowest row that is not finite, as of RowChecks
};

}  // namespace fct::cuda
