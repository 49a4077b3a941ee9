#include "convert.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace fct::cpu {
namespace {

std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

// Scalar float16, for the tails of the vector loops and for machines without F16C.
float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
  if (exponent == 31) return float_of(sign | 0x7f800000 | (mantissa << 13));
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(mantissa), -24);
  return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // rounds beyond 65504
  if (magnitude < 0x38800000) {  // subnormal: let float addition do the rounding at 2^-24
    const float aligned = float_of(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_of(aligned) - 0x3f000000));
  }
  const std::uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

__attribute__((target("avx,f16c"))) std::size_t halves_to_floats_f16c(const std::uint16_t* from, float* to,
                                                                      std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  return i;
}

__attribute__((target("avx,f16c"))) std::size_t floats_to_halves_f16c(const float* from, std::uint16_t* to,
                                                                      std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  return i;
}

const bool kHasF16c = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");

void halves_to_floats(const std::uint16_t* from, float* to, std::size_t count) {
  std::size_t i = kHasF16c ? halves_to_floats_f16c(from, to, count) : 0;
  for (; i < count; ++i) to[i] = half_to_float(from[i]);
}

void floats_to_halves(const float* from, std::uint16_t* to, std::size_t count) {
  std::size_t i = kHasF16c ? floats_to_halves_f16c(from, to, count) : 0;
  for (; i < count; ++i) to[i] = float_to_half(from[i]);
}

FCT_VECTOR void floats_to_bfloats(const float* from, std::uint16_t* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = bits_of(from[i]), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;  // rounding could carry a NaN over into -0
    to[i] = static_cast<std::uint16_t>(is_nan ? 0x7fc0 : rounded);
  }
}

FCT_VECTOR void bfloats_to_floats(const std::uint16_t* from, float* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i] = float_of(static_cast<std::uint32_t>(from[i]) << 16);
}

// Adding 1.5 * 2^23 leaves no bits behind the point: the sum is rounded to the nearest even integer, which
// then stands in its last bits.
template <typename Integer>
inline __attribute__((always_inline)) void to_integers(const float* from, Integer* to, std::size_t count,
                                                       float inverse, float lowest, float highest) {
  for (std::size_t i = 0; i < count; ++i) {
    float value = from[i] * inverse;
    value = value < lowest ? lowest : value;
    value = value > highest ? highest : value;
    to[i] = static_cast<Integer>(bits_of(value + 12582912.0f) - bits_of(12582912.0f));
  }
}

FCT_VECTOR void floats_to_int8(const float* from, std::int8_t* to, std::size_t count, float inverse) {
  to_integers(from, to, count, inverse, -127.0f, 127.0f);
}

FCT_VECTOR void floats_to_uint8(const float* from, std::uint8_t* to, std::size_t count, float inverse) {
  to_integers(from, to, count, inverse, 0.0f, 255.0f);
}

template <typename Integer>
void integers_to_floats(const void* from, float* to, std::size_t count, float scale) {
  for (std::size_t i = 0; i < count; ++i)
    to[i] = scale * static_cast<float>(static_cast<const Integer*>(from)[i]);
}

// Without its sign a floating-point number is ordered as its bits are; infinity and NaN are the largest.
FCT_VECTOR bool all_within_float(const float* values, std::size_t count, std::int32_t limit) {
  std::int32_t beyond = 0;
  for (std::size_t i = 0; i < count; ++i)
    beyond |= static_cast<std::int32_t>(bits_of(values[i]) & 0x7fffffff) > limit ? 1 : 0;
  return beyond == 0;
}

FCT_VECTOR bool all_within_half(const std::uint16_t* bits, std::size_t count, std::int16_t limit) {
  std::int16_t beyond = 0;
  for (std::size_t i = 0; i < count; ++i)
    beyond |= static_cast<std::int16_t>(bits[i] & 0x7fff) > limit ? 1 : 0;
  return beyond == 0;
}

// The bits of the largest value of a type that is not above `limit`.
std::int32_t bits_of_limit(float limit, DType dtype) {
  const std::uint32_t bits = bits_of(limit);
  if (dtype == DType::kFloat32) return static_cast<std::int32_t>(bits);
  if (dtype == DType::kBFloat16) return static_cast<std::int32_t>(bits >> 16);
  if (limit >= 65504.0f) return 0x7bff;
  const std::uint16_t half = float_to_half(limit);
  return half_to_float(half) > limit ? half - 1 : half;
}

FCT_VECTOR void add_floats(const float* left, const float* right, float* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = left[i] + right[i];
}

// In float64, so that no finite row overflows on the way.
FCT_VECTOR double squared_norm(const float* row, std::size_t width) {
  double lanes[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= width; i += 8)
    for (std::size_t lane = 0; lane < 8; ++lane)
      lanes[lane] += static_cast<double>(row[i + lane]) * static_cast<double>(row[i + lane]);
  double sum = 0;
  for (; i < width; ++i) sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  for (double lane : lanes) sum += lane;
  return sum;
}

FCT_VECTOR void divide(float* values, double divisor, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) values[i] = static_cast<float>(values[i] / divisor);
}

constexpr std::size_t kPiece = 512;  // elements cast at once on the stack when a cast takes two hops

}  // namespace

void convert(const void* from, DType from_type, void* to, DType to_type, std::size_t count, float scale) {
  if (from_type == to_type) {
    std::memcpy(to, from, count * size_of(from_type));
  } else if (from_type == DType::kFloat32 && to_type == DType::kInt8) {
    floats_to_int8(static_cast<const float*>(from), static_cast<std::int8_t*>(to), count, 1 / scale);
  } else if (from_type == DType::kFloat32 && to_type == DType::kUint8) {
    floats_to_uint8(static_cast<const float*>(from), static_cast<std::uint8_t*>(to), count, 1 / scale);
  } else if (from_type == DType::kFloat32) {
    const auto* source = static_cast<const float*>(from);
    auto* target = static_cast<std::uint16_t*>(to);
    to_type == DType::kFloat16 ? floats_to_halves(source, target, count)
                               : floats_to_bfloats(source, target, count);
  } else if (to_type == DType::kFloat32 && size_of(from_type) == 1) {
    auto* target = static_cast<float*>(to);
    from_type == DType::kInt8 ? integers_to_floats<std::int8_t>(from, target, count, scale)
                              : integers_to_floats<std::uint8_t>(from, target, count, scale);
  } else if (to_type == DType::kFloat32) {
    const auto* source = static_cast<const std::uint16_t*>(from);
    auto* target = static_cast<float*>(to);
    from_type == DType::kFloat16 ? halves_to_floats(source, target, count)
                                 : bfloats_to_floats(source, target, count);
  } else {
    float piece[kPiece];
    for (std::size_t done = 0; done < count; done += kPiece) {
      const std::size_t size = std::min(kPiece, count - done);
      convert(static_cast<const std::uint16_t*>(from) + done, from_type, piece, DType::kFloat32, size);
      convert(piece, DType::kFloat32, static_cast<char*>(to) + done * size_of(to_type), to_type, size, scale);
    }
  }
}

bool all_within(const void* data, DType dtype, std::size_t count, float limit) {
  const std::int32_t bits = bits_of_limit(limit, dtype);
  if (dtype == DType::kFloat32) return all_within_float(static_cast<const float*>(data), count, bits);
  return all_within_half(static_cast<const std::uint16_t*>(data), count, static_cast<std::int16_t>(bits));
}

std::int64_t first_row_beyond(const void* data, DType dtype, std::int64_t rows, int width, float limit) {
  const auto columns = static_cast<std::size_t>(width);
  if (all_within(data, dtype, static_cast<std::size_t>(rows) * columns, limit)) return kNoRow;
  std::int64_t row = 0;
  while (all_within(row_of(data, dtype, row, width), dtype, columns, limit)) ++row;
  return row;
}

void add(const void* left, DType left_type, const void* right, DType right_type, void* out, DType out_type,
         std::size_t count, float out_scale) {
  float a[kPiece], b[kPiece];
  for (std::size_t done = 0; done < count; done += kPiece) {
    const std::size_t size = std::min(kPiece, count - done);
    convert(static_cast<const char*>(left) + done * size_of(left_type), left_type, a, DType::kFloat32, size);
    convert(static_cast<const char*>(right) + done * size_of(right_type), right_type, b, DType::kFloat32,
            size);
    add_floats(a, b, a, size);
    convert(a, DType::kFloat32, static_cast<char*>(out) + done * size_of(out_type), out_type, size,
            out_scale);
  }
}

void normalize_rows(const void* in, DType in_type, void* out, DType out_type, std::size_t rows,
                    std::size_t width, float out_scale) {
  std::vector<float> values(width);
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t first = row * width;
    convert(static_cast<const char*>(in) + first * size_of(in_type), in_type, values.data(), DType::kFloat32,
            width);
    divide(values.data(), std::max(std::sqrt(squared_norm(values.data(), width)), 1e-12), width);
    convert(values.data(), DType::kFloat32, static_cast<char*>(out) + first * size_of(out_type), out_type,
            width, out_scale);
  }
}

}  // namespace fct::cpu
