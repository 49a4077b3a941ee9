#include "fake_assign.h"

#include <cmath>
#include <limits>

#include "fake_rows.h"

namespace fct::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kSums = 16;

void note_bad(std::int64_t* first_bad, std::int64_t row) { *first_bad = std::min(*first_bad, row); }

}  // namespace

void shift_rows(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids,
                const cuda::Matrix& to, std::int64_t padded, std::int64_t block_rows,
                cuda::ListSearch* searches) {
  const bool has_lists = centroids.values != nullptr;
  for (std::int64_t row = 0; row < (has_lists ? block_rows : rows.count); ++row) {
    double squares = 0;
    bool finite = true;
    for (std::int64_t k = 0; k < padded; ++k) {
      float value = row < rows.count && k < centroids.dim ? rows.rows[row * centroids.dim + k] : 0;
      finite = finite && std::isfinite(value);
      if (has_lists && row < rows.count && k < centroids.dim) value -= centroids.mean[k];
      squares += static_cast<double>(value) * static_cast<double>(value);
      if (has_lists) store_element(to, row, k, value);
    }
    if (row >= rows.count) continue;
    if (!finite) note_bad(rows.first_bad, row);
    if (!has_lists) continue;
    const float length = static_cast<float>(std::sqrt(squares)) * 1.001f;
    const float reach = length + centroids.errors.reach;
    const bool is_safe = reach < cuda::kSafeLength;
    searches[row] = {is_safe ? centroids.errors.by_length * length + centroids.errors.always : kInfinity,
                     is_safe ? centroids.errors.rounding * reach * reach : 0, -kInfinity, std::nanf(""), -1};
  }
}

float float_distance(const float* row, const float* centroid, std::int64_t dim, Metric metric) {
  float sums[kSums] = {}, total = 0;
  const std::int64_t whole = dim / kSums * kSums;
  for (std::int64_t k = 0; k < dim; ++k) {
    float& sum = k < whole ? sums[k % kSums] : total;
    const float left = metric == Metric::kL2 ? row[k] - centroid[k] : row[k];
    sum = std::fma(left, metric == Metric::kL2 ? left : centroid[k], sum);
  }
  for (float sum : sums) total += sum;
  const float away = metric == Metric::kL2 ? total : -total;
  return away <= kInfinity ? away : kInfinity;
}

void search_rows(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids,
                 const cuda::Matrix& scores, std::int64_t first_list, std::int64_t lists,
                 cuda::ListSearch* searches) {
  for (std::int64_t row = 0; row < rows.count; ++row) {
    cuda::ListSearch& search = searches[row];
    const auto error_of = [&](std::int64_t list) {
      const float length = centroids.lengths[first_list + list];
      return length * (search.error + centroids.errors.by_centroid * length);
    };
    for (std::int64_t list = 0; list < lists; ++list)
      search.floor = std::fmax(search.floor, load_element(scores, row, list) - error_of(list));
    for (std::int64_t list = 0; list < lists; ++list) {
      const float high = load_element(scores, row, list) + error_of(list);
      if (high < search.floor - 2 * search.slack) continue;
      const float away = float_distance(rows.rows + row * centroids.dim,
                                        centroids.values + (first_list + list) * centroids.dim, centroids.dim,
                                        centroids.metric);
      if (search.list >= 0 && !(away < search.away)) continue;
      search.list = static_cast<std::int32_t>(first_list + list);
      search.away = away;
    }
    if (first_list + lists == centroids.count) rows.lists[row] = search.list;
  }
}

void encode_rows(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids,
                 const cuda::DeviceCodebooks& codebooks) {
  constexpr std::int64_t kEntries = Codebooks::kEntries;
  const std::int64_t width = codebooks.part_dim, dim = width * codebooks.parts;
  for (std::int64_t row = 0; row < rows.count; ++row)
    for (std::int64_t part = 0; part < codebooks.parts; ++part) {
      float least = kInfinity;
      std::int64_t nearest = 0;
      for (std::int64_t entry = 0; entry < kEntries; ++entry) {
        float sum = 0;
        for (std::int64_t k = part * width; k < (part + 1) * width; ++k) {
          float value = rows.rows[row * dim + k];
          if (centroids.values != nullptr) value -= centroids.values[rows.lists[row] * dim + k];
          const float difference = value - codebooks.values[k * kEntries + entry];
          sum = std::fma(difference, difference, sum);
        }
        if (!(sum < least)) continue;
        least = sum;
        nearest = entry;
      }
      rows.codes[row * codebooks.parts + part] = static_cast<std::uint8_t>(nearest);
    }
}

}  // namespace fct::testing
