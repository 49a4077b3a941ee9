// Scores of rows for centroids by products of 16-bit integers. See Note [Integer scores].
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace fct::assign {

constexpr int kPanel = 16;         // centroids that are scored at once
constexpr int kPanelsAtOnce = 64;  // what a cache holds of them
constexpr int kBatch = 32;         // rows that meet the same panels
constexpr int kRowsAtOnce = 8;     // a batch is filled up to a multiple

// Vectors are loaded whole from cache lines.
template <typename Value>
struct CacheLines {
  using value_type = Value;
  CacheLines() = default;
  template <typename Other>
  explicit CacheLines(const CacheLines<Other>&) {}
  Value* allocate(std::size_t count) {
    return static_cast<Value*>(::operator new(count * sizeof(Value), std::align_val_t{64}));
  }
  void deallocate(Value* values, std::size_t) { ::operator delete(values, std::align_val_t{64}); }
  bool operator==(const CacheLines&) const { return true; }
};
template <typename Value>
using AlignedVector = std::vector<Value, CacheLines<Value>>;

// The largest size of a vector as integers: no sum of products leaves 32 bits, by Cauchy and Schwarz.
constexpr float kIntegerLength = 32000;
// Of the error of a score, by the lengths of both vectors and the root of their dimension.
constexpr float kIntegerRounding = 2 * 0.52f / kIntegerLength;

// 16-bit integers, two in each value, the first in the lower half.
inline int pairs_of(int dim) { return (dim + 1) / 2; }

// Divides a vector by `scale`, which is its length / kIntegerLength or more, and rounds; 0 makes zeros of it.
void round_to_pairs(const float* values, int dim, float scale, std::int32_t* pairs);

// Centroids in panels; what the last one has no centroid for scores -infinity.
struct Panels {
  Panels() = default;
  Panels(int panels, int dim);
  // A centroid's place is panel * kPanel + column. One that is too long for floats scores 0.
  void put(std::size_t place, const float* values, float scale, float bias, float length);

  int count = 0, dim = 0;
  AlignedVector<std::int32_t> values;            // (count, pairs, kPanel)
  AlignedVector<float> scales, biases, lengths;  // (count, kPanel)
};

// Rows that meet the same panels; the last ones may be repetitions.
struct Batch {
  int count = 0;
  const std::int32_t* rows[kBatch];
  float scales[kBatch];
  float errors[kBatch];  // of a score, for a centroid of length 1
};

// What scores of a batch can be at most.
struct Bounds {
  alignas(64) float highs[kPanelsAtOnce][kBatch][kPanel];
  alignas(64) float tops[kBatch][kPanel];  // the largest, of all panels with the same column
};

// Scores a batch for at most kPanelsAtOnce panels.
void score(const Panels& panels, int first, int count, const Batch& batch, Bounds& bounds);
// The same, but writes the tops only.
void score_tops(const Panels& panels, int first, int count, const Batch& batch, float (*tops)[kPanel]);

float largest(const float (&columns)[kPanel]);

// Of (spans, kBatch, kPanel) the span with the largest value of a row, the first among equals.
int span_of_top(const float (*tops)[kBatch][kPanel], int spans, int row);

// The place, among the panels that were scored, of a high that is among the tops of a row.
int place_of(const Bounds& bounds, int row, float high);

// Columns of a panel with a high of a row that is not below its floor, a bit for each.
struct Hit {
  std::int32_t panel;
  std::uint16_t row, columns;
};

// Writes the hits of each panel, from 0 on, and each row; returns how many. There is room for one more than
// all.
int reaching(const float (*highs)[kBatch][kPanel], int panels, int rows, const float* floors, Hit* hits);

}  // namespace fct::assign
