#include "distances.h"

#include <algorithm>
#include <limits>

#include "cpu/vectors.h"

namespace fct::assign {
namespace {

constexpr int kSums = 16;  // partial ones, on every machine
using Floats = cpu::Vector<kSums>::Floats;

}  // namespace

FCT_VECTOR double precise_dot(const float* left, const float* right, std::size_t count) {
  double lanes[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (std::size_t lane = 0; lane < 8; ++lane)
      lanes[lane] += static_cast<double>(left[i + lane]) * static_cast<double>(right[i + lane]);
  double sum = 0;
  for (; i < count; ++i) sum += static_cast<double>(left[i]) * static_cast<double>(right[i]);
  for (double lane : lanes) sum += lane;
  return sum;
}

double squared_length(const float* values, std::size_t count) { return precise_dot(values, values, count); }

FCT_VECTOR float squared_distance(const float* left, const float* right, std::size_t count) {
  Floats lanes{};
  std::size_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    const Floats difference =
        *reinterpret_cast<const Floats*>(left + i) - *reinterpret_cast<const Floats*>(right + i);
    lanes += difference * difference;
  }
  float sum = 0;
  for (; i < count; ++i) sum += (left[i] - right[i]) * (left[i] - right[i]);
  for (int lane = 0; lane < kSums; ++lane) sum += lanes[lane];
  return sum;
}

FCT_VECTOR float dot(const float* left, const float* right, std::size_t count) {
  Floats lanes{};
  std::size_t i = 0;
  for (; i + kSums <= count; i += kSums)
    lanes += *reinterpret_cast<const Floats*>(left + i) * *reinterpret_cast<const Floats*>(right + i);
  float sum = 0;
  for (; i < count; ++i) sum += left[i] * right[i];
  for (int lane = 0; lane < kSums; ++lane) sum += lanes[lane];
  return sum;
}

template <int kLanes>
[[gnu::always_inline]] inline float quick_dot_with(const float* left, const float* right, std::size_t count) {
  using Values = typename cpu::Vector<kLanes>::Floats;
  Values sums{}, others{};  // that do not wait for each other
  std::size_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    sums += *reinterpret_cast<const Values*>(left + i) * *reinterpret_cast<const Values*>(right + i);
    others += *reinterpret_cast<const Values*>(left + i + kLanes) *
              *reinterpret_cast<const Values*>(right + i + kLanes);
  }
  sums += others;
  float lanes[kLanes];
  __builtin_memcpy(lanes, &sums, sizeof lanes);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  for (; i < count; ++i) lanes[0] += left[i] * right[i];
  return lanes[0];
}

FCT_BY_LANES(float, quick_dot, (const float* left, const float* right, std::size_t count),
             (left, right, count))

FCT_VECTOR void subtract(const float* left, const float* right, float* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = left[i] - right[i];
}

template <int kLanes>
[[gnu::always_inline]] inline float bounds_of_with(const float* scores, const float* lengths, float error,
                                                   float own_rounding, std::size_t count, float& floor) {
  using Values = typename cpu::Vector<kLanes>::Floats;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  Values lows = Values{} + kLowest, highs = lows;
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Values values = *reinterpret_cast<const Values*>(scores + i);
    const Values length = *reinterpret_cast<const Values*>(lengths + i);
    const Values slack = (length * own_rounding + error) * length;
    const Values low = values - slack, high = values + slack;
    lows = low > lows ? low : lows;
    highs = high > highs ? high : highs;
  }
  float highest = kLowest;
  for (; i < count; ++i) {
    const float slack = (lengths[i] * own_rounding + error) * lengths[i];
    floor = std::max(floor, scores[i] - slack);  // max keeps the first of two if the second is NaN
    highest = std::max(highest, scores[i] + slack);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    floor = std::max(floor, lows[lane]);
    highest = std::max(highest, highs[lane]);
  }
  return highest;
}

FCT_BY_LANES(float, bounds_of,
             (const float* scores, const float* lengths, float error, float own_rounding, std::size_t count,
              float& floor),
             (scores, lengths, error, own_rounding, count, floor))

}  // namespace fct::assign
