// Note [Integer scores]
// A CPU multiplies and adds twice as many 16-bit integers as floats, and their sums in 32 bits are exact: the
// order of adding does not matter, and what is lost is lost by rounding alone. A vector is divided by its
// length, times 32,000; then no value leaves 16 bits, and by Cauchy and Schwarz no sum of products leaves 32.
// Rounding moves a vector by sqrt(dim) / 2 at most, 1 / 5,600 of its length for 128 dims: by that and what
// floats round afterwards the scores are uncertain, each by its centroid's length.
#include "integer_panels.h"

#include <immintrin.h>  // declares built-in functions of all instruction sets

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/vectors.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed among inlined functions only

namespace fct::assign {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

template <int kLanes>
struct Lanes {
  using Floats = typename cpu::Vector<kLanes>::Floats;
  using Ints = typename cpu::Vector<kLanes>::Ints;
  using Shorts [[gnu::vector_size(4 * kLanes)]] = std::int16_t;
};

// Adds products of pairs: an instruction that no loop compiles to.
template <int kLanes>
[[gnu::always_inline]] inline void add_products(typename Lanes<kLanes>::Ints& sums,
                                                const typename Lanes<kLanes>::Ints& left,
                                                const typename Lanes<kLanes>::Ints& right) {
  using Shorts = typename Lanes<kLanes>::Shorts;
  using Ints = typename Lanes<kLanes>::Ints;
  if constexpr (kLanes == 16)
    sums += (Ints)__builtin_ia32_pmaddwd512_mask((Shorts)left, (Shorts)right, Ints{}, std::uint16_t(-1));
  else if constexpr (kLanes == 8)
    sums += (Ints)__builtin_ia32_pmaddwd256((Shorts)left, (Shorts)right);
  else
    sums += (Ints)__builtin_ia32_pmaddwd128((Shorts)left, (Shorts)right);
}

template <int kLanes>
[[gnu::always_inline]] inline void score_panels_with(const Panels& panels, int first, int count,
                                                     const Batch& batch, float (*highs)[kBatch][kPanel],
                                                     float (*tops)[kPanel]) {
  using Floats = typename Lanes<kLanes>::Floats;
  using Ints = typename Lanes<kLanes>::Ints;
  constexpr int kVectors = kPanel / kLanes, kRows = 8 / kVectors;  // sums that fit into registers
  static_assert(kRowsAtOnce % kRows == 0 && kBatch % kRowsAtOnce == 0);
  const int pairs = pairs_of(panels.dim);
  for (int row = 0; row < batch.count; ++row) std::fill_n(tops[row], kPanel, kLowest);
  for (int panel = first; panel < first + count; ++panel) {
    const std::int32_t* values = panels.values.data() + at(panel) * at(pairs) * kPanel;
    const float* scales = panels.scales.data() + at(panel) * kPanel;
    const float* biases = panels.biases.data() + at(panel) * kPanel;
    const float* lengths = panels.lengths.data() + at(panel) * kPanel;
    for (int row = 0; row < batch.count; row += kRows) {
      Ints sums[kRows][kVectors] = {};
      const std::int32_t* rows[kRows];
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) rows[i] = batch.rows[row + i];
      for (int k = 0; k < pairs; ++k) {
        Ints columns[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          columns[v] = *reinterpret_cast<const Ints*>(values + k * kPanel + v * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const Ints pair = Ints{} + rows[i][k];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) add_products<kLanes>(sums[i][v], pair, columns[v]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int lane = v * kLanes;
          const Floats exact = __builtin_convertvector(sums[i][v], Floats) * batch.scales[row + i];
          const Floats middle = exact * *reinterpret_cast<const Floats*>(scales + lane) +
                                *reinterpret_cast<const Floats*>(biases + lane);
          const Floats slack = *reinterpret_cast<const Floats*>(lengths + lane) * batch.errors[row + i];
          const Floats high = middle + slack;
          if (highs) *reinterpret_cast<Floats*>(highs[panel - first][row + i] + lane) = high;
          Floats& top = *reinterpret_cast<Floats*>(tops[row + i] + lane);
          top = high > top ? high : top;
        }
    }
  }
}

// A bit for each lane of a comparison that is true.
template <int kLanes>
[[gnu::always_inline]] inline unsigned bits_of(const typename Lanes<kLanes>::Ints& mask) {
  using Floats = typename Lanes<kLanes>::Floats;
  if constexpr (kLanes == 4) {
    return static_cast<unsigned>(__builtin_ia32_movmskps((Floats)mask));
  } else if constexpr (kLanes == 8) {
    return static_cast<unsigned>(__builtin_ia32_movmskps256((Floats)mask));
  } else {
    return bits_of<8>(__builtin_shufflevector(mask, mask, 0, 1, 2, 3, 4, 5, 6, 7)) |
           bits_of<8>(__builtin_shufflevector(mask, mask, 8, 9, 10, 11, 12, 13, 14, 15)) << 8;
  }
}

template <int kLanes>
[[gnu::always_inline]] inline int reaching_floor_with(const float (*highs)[kBatch][kPanel], int panels,
                                                      int rows, const float* floors, Hit* hits) {
  using Floats = typename Lanes<kLanes>::Floats;
  int count = 0;
  for (int panel = 0; panel < panels; ++panel)
    for (int row = 0; row < rows; ++row) {
      unsigned columns = 0;
#pragma GCC unroll 4
      for (int lane = 0; lane < kPanel; lane += kLanes)
        columns |= bits_of<kLanes>(*reinterpret_cast<const Floats*>(highs[panel][row] + lane) >= floors[row])
                   << lane;
      hits[count] = {panel, static_cast<std::uint16_t>(row), static_cast<std::uint16_t>(columns)};
      count += columns != 0;
    }
  return count;
}

FCT_BY_LANES(void, score_panels,
             (const Panels& panels, int first, int count, const Batch& batch, float (*highs)[kBatch][kPanel],
              float (*tops)[kPanel]),
             (panels, first, count, batch, highs, tops))
FCT_BY_LANES(int, reaching_floor,
             (const float (*highs)[kBatch][kPanel], int panels, int rows, const float* floors, Hit* hits),
             (highs, panels, rows, floors, hits))

}  // namespace

FCT_VECTOR void round_to_pairs(const float* values, int dim, float scale, std::int32_t* pairs) {
  auto* integers = reinterpret_cast<std::int16_t*>(pairs);
  if (!(scale > 0)) {
    std::fill_n(pairs, pairs_of(dim), 0);
    return;
  }
  const float inverse = 1 / scale;
  for (int k = 0; k < dim; ++k) {
    const float scaled = values[k] * inverse;
    integers[k] = static_cast<std::int16_t>(static_cast<int>(scaled + std::copysign(0.5f, scaled)));
  }
  if (dim % 2 != 0) integers[dim] = 0;
}

Panels::Panels(int panels, int dims)
    : count(panels),
      dim(dims),
      values(at(panels) * at(pairs_of(dims)) * kPanel),
      scales(at(panels) * kPanel),
      biases(scales.size(), kLowest),
      lengths(scales.size()) {}

void Panels::put(std::size_t place, const float* vector, float scale, float bias, float length) {
  std::vector<std::int32_t> pairs(at(pairs_of(dim)));
  const bool is_finite = std::isfinite(scale) && std::isfinite(bias);
  if (!is_finite) scale = bias = 0;
  round_to_pairs(vector, dim, scale, pairs.data());
  std::int32_t* column = values.data() + place / kPanel * pairs.size() * kPanel + place % kPanel;
  for (std::size_t k = 0; k < pairs.size(); ++k) column[k * kPanel] = pairs[k];
  scales[place] = scale;
  biases[place] = bias;
  lengths[place] = length;
}

void score(const Panels& panels, int first, int count, const Batch& batch, Bounds& bounds) {
  score_panels(panels, first, count, batch, bounds.highs, bounds.tops);
}

void score_tops(const Panels& panels, int first, int count, const Batch& batch, float (*tops)[kPanel]) {
  score_panels(panels, first, count, batch, nullptr, tops);
}

float largest(const float (&columns)[kPanel]) {
  float left[kPanel];
  std::copy_n(columns, kPanel, left);
  for (int half = kPanel / 2; half > 0; half /= 2)  // without branches that nobody can predict
    for (int i = 0; i < half; ++i) left[i] = left[i] > left[i + half] ? left[i] : left[i + half];
  return left[0];
}

FCT_VECTOR int span_of_top(const float (*tops)[kBatch][kPanel], int spans, int row) {
  float highest[kPanel];
  int of[kPanel] = {};
  std::copy_n(tops[0][row], kPanel, highest);
  for (int span = 1; span < spans; ++span)
    for (int column = 0; column < kPanel; ++column) {
      const bool is_higher = tops[span][row][column] > highest[column];
      highest[column] = is_higher ? tops[span][row][column] : highest[column];
      of[column] = is_higher ? span : of[column];
    }
  int best = 0;
  for (int column = 1; column < kPanel; ++column)
    if (highest[column] > highest[best] || (highest[column] == highest[best] && of[column] < of[best]))
      best = column;
  return of[best];
}

int place_of(const Bounds& bounds, int row, float high) {
  int column = 0, panel = 0;
  while (bounds.tops[row][column] != high) ++column;
  while (bounds.highs[panel][row][column] != high) ++panel;
  return panel * kPanel + column;
}

int reaching(const float (*highs)[kBatch][kPanel], int panels, int rows, const float* floors, Hit* hits) {
  return reaching_floor(highs, panels, rows, floors, hits);
}

}  // namespace fct::assign
