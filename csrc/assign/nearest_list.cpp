// Note [Nearest list]
// The nearest centroid is looked for twice. First by products of 16-bit integers, or of bfloat16 where that
// is faster: scores that are known up to a bound, for all lists. Then, among the lists that may still be the
// nearest one within twice that bound, by the distance itself in float32. Most rows have one such list, and
// nothing is left to decide. So the first search changes the time only, never the list.
//
// A score is -|x - c|^2 / 2, or x . c, less what is the same for all lists. With m the mean of the centroids,
// y = x - m and d = c - m it is y . d + bias, bias = -|d|^2 / 2 or m . d: shifted, because errors grow with
// the lengths of what is multiplied, and rows of models are often far from 0. By Cauchy and Schwarz the error
// is at most r |y| |d|, r from rounding both factors and summing, and that of the bias: a share of |d|^2 or
// of |m| |d|. Each list's is its own: Note [Far centroids], shifted_centroids.cpp.
#include "nearest_list.h"

#include <limits>

#include "distances.h"

namespace fct::assign {

NearestList::Workspace::Workspace(const NearestList& lists)
    : found(static_cast<std::size_t>(lists.tile_rows())), search(lists.search_->make_workspace()) {}

void NearestList::assign(const float* rows, std::int64_t count, std::int64_t* lists,
                         Workspace& workspace) const {
  search_->search(rows, count, workspace.found.data(), *workspace.search);
  for (std::int64_t row = 0; row < count; ++row)
    lists[row] = settle(rows + row * dim(), workspace.found[static_cast<std::size_t>(row)]);
}

// The nearest of those that may be, the lowest number among equals.
std::int64_t NearestList::settle(const float* row, const Found& found) const {
  const auto width = static_cast<std::size_t>(dim());
  std::int64_t nearest = -1, left = 0;
  for (const Candidate& candidate : found.candidates)
    if (!(candidate.high < found.floor)) {
      nearest = candidate.list;
      ++left;
    }
  if (left == 1) return nearest;
  float least = std::numeric_limits<float>::infinity();
  for (const Candidate& candidate : found.candidates) {
    if (candidate.high < found.floor) continue;
    const float* centroid = centroids_.values.data() + static_cast<std::size_t>(candidate.list) * width;
    const float away = centroids_.metric == Metric::kL2 ? squared_distance(row, centroid, width)
                                                        : -dot(row, centroid, width);
    const bool is_first = away == least && candidate.list < nearest;
    if (away < least || is_first) {
      least = away;
      nearest = candidate.list;
    }
  }
  return nearest;
}

}  // namespace fct::assign
