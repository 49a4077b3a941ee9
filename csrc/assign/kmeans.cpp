// Note [k-means]
// Lloyd's iterations from given centroids, as FAISS does them: each row to its nearest centroid, each
// centroid to the mean of its rows; one without rows takes half of those of the centroid that has most. Means
// are summed in float64 and in the order of the rows, by one thread (a codebook) or after all threads are
// done (centroids of lists): the result does not depend on how many there are.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <queue>
#include <utility>

#include "checks.h"
#include "cpu/thread_pool.h"
#include "fct/assign.h"
#include "nearest_entry.h"

namespace fct {
namespace {

using assign::kGroupRows;
constexpr float kNudge = 1.f / 1024;  // between two centroids that share rows: as FAISS has it

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// What the rows of each of some centroids add up to.
struct Sums {
  Sums(int count, int dim) : counts(at(count)), values(at(count) * at(dim)) {}

  void clear() {
    std::fill(counts.begin(), counts.end(), 0);
    std::fill(values.begin(), values.end(), 0.);
  }

  std::vector<std::int64_t> counts;
  std::vector<double> values;  // (count, dim)
};

// Gives each centroid without rows half of those of the largest, the first among equals.
void split_largest(std::vector<std::int64_t>& counts, float* centroids, std::size_t dim) {
  std::priority_queue<std::pair<std::int64_t, std::int64_t>> largest;  // (rows, -centroid)
  for (std::size_t i = 0; i < counts.size(); ++i)
    if (counts[i] > 1) largest.emplace(counts[i], -static_cast<std::int64_t>(i));
  for (std::size_t empty = 0; empty < counts.size() && !largest.empty(); ++empty) {
    if (counts[empty] > 0) continue;
    const auto [rows, negated] = largest.top();
    largest.pop();
    const std::size_t split = at(-negated);
    for (std::size_t k = 0; k < dim; ++k) {
      const float value = centroids[split * dim + k], nudge = k % 2 == 0 ? kNudge : -kNudge;
      centroids[empty * dim + k] = value * (1 + nudge);
      centroids[split * dim + k] = value * (1 - nudge);
    }
    counts[empty] = rows / 2;
    counts[split] = rows - rows / 2;
    for (std::size_t part : {empty, split})
      if (counts[part] > 1) largest.emplace(counts[part], -static_cast<std::int64_t>(part));
  }
}

void normalize(float* values, std::size_t count) {
  double squared = 0;
  for (std::size_t i = 0; i < count; ++i)
    squared += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  if (!(squared > 0)) return;
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<float>(static_cast<double>(values[i]) / std::sqrt(squared));
}

// Returns whether any centroid moved.
bool move_to_means(Sums& sums, float* centroids, std::size_t dim, bool spherical) {
  const std::vector<float> before(centroids, centroids + sums.values.size());
  for (std::size_t i = 0; i < sums.counts.size(); ++i)
    for (std::size_t k = 0; k < dim && sums.counts[i] > 0; ++k)
      centroids[i * dim + k] =
          static_cast<float>(sums.values[i * dim + k] / static_cast<double>(sums.counts[i]));
  split_largest(sums.counts, centroids, dim);
  for (std::size_t i = 0; i < sums.counts.size() && spherical; ++i) normalize(centroids + i * dim, dim);
  return !std::equal(before.begin(), before.end(), centroids);
}

// Refines one codebook (kEntries, width) for a part of all rows, as groups (width, kGroupRows).
void refine_codebook(const std::vector<float>& groups, std::int64_t count, int width, int iterations,
                     float* book) {
  const std::size_t dim = at(width);
  Sums sums(Codebooks::kEntries, width);
  std::vector<float> half_squares(at(Codebooks::kEntries));
  std::int32_t nearest[kGroupRows];
  for (int iteration = 0; iteration < iterations; ++iteration) {
    for (std::size_t entry = 0; entry < half_squares.size(); ++entry) {
      half_squares[entry] = 0;
      for (std::size_t k = 0; k < dim; ++k)
        half_squares[entry] += book[entry * dim + k] * book[entry * dim + k] / 2;
    }
    sums.clear();
    for (std::int64_t first = 0; first < count; first += kGroupRows) {
      const float* rows = groups.data() + at(first) * dim;
      assign::nearest_entries_by_products(rows, book, half_squares.data(), width, nearest);
      const std::size_t lanes = at(std::min<std::int64_t>(kGroupRows, count - first));
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        const std::size_t entry = at(nearest[lane]);
        ++sums.counts[entry];
        for (std::size_t k = 0; k < dim; ++k)
          sums.values[entry * dim + k] += static_cast<double>(rows[k * kGroupRows + lane]);
      }
    }
    if (!move_to_means(sums, book, dim, false)) return;
  }
}

}  // namespace

Centroids refine_centroids(const float* rows, std::int64_t count, Centroids centroids, bool spherical,
                           int iterations, int threads, const std::optional<Groups>& groups,
                           const std::optional<Directions>& directions) {
  const std::size_t dim = at(centroids.dim);
  std::vector<std::int64_t> lists(at(count));
  Sums sums(centroids.count, centroids.dim);
  if (spherical)
    for (std::size_t i = 0; i < at(centroids.count); ++i) normalize(centroids.values.data() + i * dim, dim);
  for (int iteration = 0; iteration < iterations; ++iteration) {
    make_assigner(centroids, std::nullopt, prefers_reduced_assignment(), groups, directions)
        ->assign(rows, count, threads, lists.data(), nullptr);
    sums.clear();
    for (std::size_t row = 0; row < lists.size(); ++row) {
      const std::size_t list = at(lists[row]);
      ++sums.counts[list];
      for (std::size_t k = 0; k < dim; ++k)
        sums.values[list * dim + k] += static_cast<double>(rows[row * dim + k]);
    }
    if (!move_to_means(sums, centroids.values.data(), dim, spherical)) break;
  }
  return centroids;
}

Codebooks refine_codebooks(const float* rows, std::int64_t count, Codebooks codebooks, int iterations,
                           int threads) {
  assign::check_codebooks(codebooks);
  const int width = codebooks.part_dim, dim = codebooks.parts * width;
  assign::check_rows(rows, count, dim);
  std::atomic<int> next_part{0};
  cpu::on_threads(std::min(threads, codebooks.parts), [&] {
    std::vector<float> groups(at(assign::groups_of(count)) * kGroupRows * at(width));
    for (int part = next_part++; part < codebooks.parts; part = next_part++) {
      for (std::int64_t row = 0; row < count; ++row)
        for (int k = 0; k < width; ++k)
          groups[(at(row / kGroupRows) * at(width) + at(k)) * kGroupRows + at(row % kGroupRows)] =
              rows[at(row) * at(dim) + at(part * width + k)];
      refine_codebook(groups, count, width, iterations,
                      codebooks.values.data() + at(part) * Codebooks::kEntries * at(width));
    }
  });
  return codebooks;
}

}  // namespace fct
