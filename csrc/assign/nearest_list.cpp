// Note [Nearest list]
// The nearest centroid is looked for twice. First by matrix products, in bfloat16 where that is fast: scores
// that are known up to a bound, for all lists. Then, among the lists that may still be the nearest one within
// twice that bound, by the distance itself in float32. Most rows have one such list, and nothing is left to
// decide. So the first search changes the time only, never the list.
//
// A score is -|x - c|^2 / 2, or x . c, less what is the same for all lists. With m the mean of the centroids,
// y = x - m and d = c - m it is y . d + bias, bias = -|d|^2 / 2 or m . d: shifted, because errors grow with
// the lengths of what is multiplied, and rows of models are often far from 0. By Cauchy and Schwarz the error
// is at most (r |y| + b) |d|, r from rounding both factors and summing, b from the bias.
#include "nearest_list.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <new>

#include "cpu/convert.h"
#include "distances.h"

namespace fct::assign {
namespace {

constexpr int kChunk = 1024;        // lists scored at once: no more scores than a cache holds
constexpr std::size_t kBlock = 64;  // scores whose candidates are looked for at once
constexpr float kFloatRounding = 0x1p-24f, kTwoBfloatRoundings = 0x1.02p-8f;
constexpr float kSafeLength = 1e15f;  // of rows and centroids: no product comes near the largest float
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

int chunk_size(int lists, std::size_t chunk) {
  return std::min(kChunk, lists - static_cast<int>(chunk) * kChunk);
}

std::vector<float> mean_of(const Centroids& centroids) {
  std::vector<double> sums(at(centroids.dim));
  for (std::size_t i = 0; i < centroids.values.size(); ++i)
    sums[i % sums.size()] += static_cast<double>(centroids.values[i]);
  std::vector<float> mean;
  for (double sum : sums) mean.push_back(static_cast<float>(sum / centroids.count));
  return mean;
}

}  // namespace

NearestList::NearestList(Centroids centroids, bool reduced, const cpu::LinearLibrary& library)
    : centroids_(std::move(centroids)), reduced_(reduced), mean_(mean_of(centroids_)) {
  const std::size_t dim = at(centroids_.dim);
  const float sum_rounding = static_cast<float>(dim + 8) * 2 * kFloatRounding;
  row_error_ = sum_rounding + (reduced_ ? kTwoBfloatRoundings : 0.f);
  std::vector<float> biases;
  std::vector<float> shifted(centroids_.values.size());
  for (std::size_t list = 0; list < at(centroids_.count); ++list) {
    float* values = shifted.data() + list * dim;
    subtract(centroids_.values.data() + list * dim, mean_.data(), values, dim);
    const double squared = squared_length(values, dim);
    double bias = -squared / 2;
    if (centroids_.metric == Metric::kInnerProduct) {
      bias = 0;
      for (std::size_t i = 0; i < dim; ++i)
        bias += static_cast<double>(mean_[i]) * static_cast<double>(values[i]);
    }
    biases.push_back(static_cast<float>(bias));
    lengths_.push_back(static_cast<float>(std::sqrt(squared) * 1.0001));
  }
  longest_ = *std::max_element(lengths_.begin(), lengths_.end());
  // What is so short that its products may vanish counts as longer than it is.
  for (float& length : lengths_) length += longest_ * 1e-6f + FLT_MIN;
  const auto mean_length = static_cast<float>(std::sqrt(squared_length(mean_.data(), dim)));
  own_error_ = sum_rounding * (centroids_.metric == Metric::kL2 ? longest_ : mean_length) + 1e-18f;

  const DType input = reduced_ ? DType::kBFloat16 : DType::kFloat32;
  for (int first = 0; first < centroids_.count; first += kChunk) {
    const int lists = chunk_size(centroids_.count, products_.size());
    const auto begin = shifted.begin() + static_cast<std::ptrdiff_t>(at(first) * dim);
    const Linear layer{0,
                       1,
                       {begin, begin + static_cast<std::ptrdiff_t>(at(lists) * dim)},
                       {biases.begin() + first, biases.begin() + first + lists},
                       Activation::kNone};
    products_.push_back(library.make(layer, {centroids_.dim, input}, {lists, DType::kFloat32}, {kTileRows}));
    scratch_bytes_ = std::max(scratch_bytes_, products_.back()->scratch_bytes());
  }
}

NearestList::Workspace::Workspace(const NearestList& lists)
    : shifted_(at(kTileRows) * at(lists.dim())),
      scores_(at(kTileRows) * at(std::min(kChunk, lists.centroids_.count))),
      rounded_(lists.reduced_ ? shifted_.size() : 0),
      rows_(at(kTileRows)),
      scratch_(static_cast<char*>(std::aligned_alloc(64, (lists.scratch_bytes_ + 63) / 64 * 64))) {
  if (!scratch_) throw std::bad_alloc();
}

void NearestList::assign(const float* rows, std::int64_t count, std::int64_t* lists,
                         Workspace& workspace) const {
  shift(rows, count, workspace);
  for (std::size_t chunk = 0; chunk < products_.size(); ++chunk) score(chunk, count, workspace);
  for (std::int64_t row = 0; row < count; ++row)
    lists[row] = settle(rows + at(row) * at(dim()), workspace.rows_[at(row)]);
}

void NearestList::shift(const float* rows, std::int64_t count, Workspace& workspace) const {
  const std::size_t width = at(dim());
  std::fill(workspace.shifted_.begin() + static_cast<std::ptrdiff_t>(at(count) * width),
            workspace.shifted_.end(), 0.f);
  for (std::int64_t index = 0; index < count; ++index) {
    float* shifted = workspace.shifted_.data() + at(index) * width;
    subtract(rows + at(index) * width, mean_.data(), shifted, width);
    const double length = std::sqrt(squared_length(shifted, width)) * 1.0001;
    auto& row = workspace.rows_[at(index)];
    // Beyond what is safe nothing is known: every list is a candidate.
    const bool is_safe = length < kSafeLength && longest_ < kSafeLength && own_error_ < kSafeLength;
    row.error = is_safe ? row_error_ * static_cast<float>(length) + own_error_ : kInfinity;
    row.floor = -kInfinity;
    row.candidates.clear();
  }
  if (reduced_)
    cpu::convert(workspace.shifted_.data(), DType::kFloat32, workspace.rounded_.data(), DType::kBFloat16,
                 workspace.shifted_.size());
}

// The lists of one chunk that may be the nearest ones, as far as is known by now.
void NearestList::score(std::size_t chunk, std::int64_t count, Workspace& workspace) const {
  const void* input = workspace.shifted_.data();
  if (reduced_) input = workspace.rounded_.data();
  products_[chunk]->run(0, input, workspace.scores_.data(), workspace.scratch_.get());
  const std::size_t lists = at(chunk_size(centroids_.count, chunk)), first = chunk * kChunk;
  float highs[kChunk / kBlock];
  for (std::int64_t index = 0; index < count; ++index) {
    auto& row = workspace.rows_[at(index)];
    const float* scores = workspace.scores_.data() + at(index) * lists;
    const float* lengths = lengths_.data() + first;
    for (std::size_t start = 0; start < lists; start += kBlock)
      highs[start / kBlock] =
          bounds_of(scores + start, lengths + start, row.error, std::min(kBlock, lists - start), row.floor);
    for (std::size_t start = 0; start < lists; start += kBlock) {
      if (highs[start / kBlock] < row.floor) continue;
      for (std::size_t list = start; list < std::min(start + kBlock, lists); ++list) {
        const float high = scores[list] + lengths[list] * row.error;
        if (!(high < row.floor)) row.candidates.push_back({static_cast<std::int64_t>(first + list), high});
      }
    }
  }
}

// The nearest of those that may be, the first among equals.
std::int64_t NearestList::settle(const float* row, const Workspace::Row& found) const {
  const std::size_t width = at(dim());
  std::int64_t nearest = -1, left = 0;
  for (const Candidate& candidate : found.candidates)
    if (!(candidate.high < found.floor)) {
      nearest = nearest < 0 ? candidate.list : nearest;
      ++left;
    }
  if (left == 1) return nearest;
  float least = kInfinity;
  for (const Candidate& candidate : found.candidates) {
    if (candidate.high < found.floor) continue;
    const float* centroid = centroids_.values.data() + at(candidate.list) * width;
    const float away = centroids_.metric == Metric::kL2 ? squared_distance(row, centroid, width)
                                                        : -dot(row, centroid, width);
    if (away < least) {
      least = away;
      nearest = candidate.list;
    }
  }
  return nearest;
}

}  // namespace fct::assign
