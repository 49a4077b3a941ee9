// Short floating-point formats, defined the slow way: in double, by the rule itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace fct::testing {

// The nearest number with `bits` significant bits, ties to even; below 2^min_exponent the spacing stays fixed
// (subnormals), and what would exceed `largest` becomes infinite.
inline double rounded(double value, int bits, int min_exponent, double largest) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int spacing = std::max(std::ilogb(value), min_exponent) - (bits - 1);
  const double nearest = std::ldexp(std::nearbyint(std::ldexp(value, -spacing)), spacing);
  return std::abs(nearest) <= largest ? nearest
                                      : std::copysign(std::numeric_limits<double>::infinity(), value);
}

inline double rounded_to_half(double value) { return rounded(value, 11, -14, 65504.0); }

inline double rounded_to_bfloat(double value) { return rounded(value, 8, -126, std::ldexp(255.0, 120)); }

inline double rounded_to_tf32(double value) { return rounded(value, 11, -126, std::ldexp(2047.0, 117)); }

inline double value_of_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31) magnitude = fraction == 0 ? INFINITY : NAN;
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

inline float value_of_bfloat(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// The bfloat16 whose value is `value` exactly.
inline std::uint16_t bfloat_of(double value) {
  const auto exact = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &exact, sizeof bits);
  return static_cast<std::uint16_t>(bits >> 16);
}

}  // namespace fct::testing
