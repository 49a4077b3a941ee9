#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/convert.h"
#include "rounding.h"

namespace fct::testing {
namespace {

using cpu::convert;

constexpr std::uint32_t kHalves = 65536;

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

bool same(double left, double right) {
  if (std::isnan(left) || std::isnan(right)) return std::isnan(left) && std::isnan(right);
  return left == right && std::signbit(left) == std::signbit(right);
}

double value_of(DType dtype, std::uint16_t bits) {
  return dtype == DType::kFloat16 ? value_of_half(bits) : value_of_bfloat(bits);
}

double rounded_to(DType dtype, double value) {
  return dtype == DType::kFloat16 ? rounded_to_half(value) : rounded_to_bfloat(value);
}

std::vector<std::uint16_t> all_shorts() {
  std::vector<std::uint16_t> all(kHalves);
  for (std::uint32_t bits = 0; bits < kHalves; ++bits) all[bits] = static_cast<std::uint16_t>(bits);
  return all;
}

// Casts all at once (vector loops) and one by one (their scalar tails).
template <typename From, typename To>
void check_cast(const std::vector<From>& from, DType from_type, DType to_type, auto&& is_right) {
  std::vector<To> to(from.size());
  convert(from.data(), from_type, to.data(), to_type, from.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    CHECK(is_right(from[i], to[i]), "vector, element " + std::to_string(i) + " " + std::to_string(from[i]));
    To alone;
    convert(&from[i], from_type, &alone, to_type, 1);
    CHECK(is_right(from[i], alone), "scalar, element " + std::to_string(i) + " " + std::to_string(from[i]));
  }
}

// Every value of the short format, every midpoint between neighbours, one float step around each, and random
// bits.
std::vector<float> hard_floats(DType dtype) {
  std::vector<float> floats;
  for (std::uint32_t bits = 0; bits + 1 < kHalves; ++bits) {
    const double value = value_of(dtype, static_cast<std::uint16_t>(bits));
    const double next = value_of(dtype, static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((value + next) / 2);
    for (float exact : {static_cast<float>(value), middle})
      for (float direction : {-INFINITY, INFINITY}) {
        floats.push_back(exact);
        floats.push_back(std::nextafter(exact, direction));
      }
  }
  for (double edge : {65504.0, 65519.0, 65520.0, 65536.0, 1e38, 3.3895e38, 3.4e38})
    for (double sign : {-1.0, 1.0}) floats.push_back(static_cast<float>(sign * edge));
  std::mt19937 random(7);
  for (int i = 0; i < 500'000; ++i) floats.push_back(float_of(static_cast<std::uint32_t>(random())));
  return floats;
}

TEST(widening_is_exact_for_every_half_and_bfloat) {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16})
    check_cast<std::uint16_t, float>(all_shorts(), dtype, DType::kFloat32, [&](std::uint16_t from, float to) {
      return same(to, value_of(dtype, from));
    });
}

TEST(narrowing_rounds_to_nearest_even) {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16})
    check_cast<float, std::uint16_t>(
        hard_floats(dtype), DType::kFloat32, dtype,
        [&](float from, std::uint16_t to) { return same(value_of(dtype, to), rounded_to(dtype, from)); });
}

TEST(narrowing_keeps_every_nan_a_nan) {
  std::vector<float> nans;
  for (std::uint32_t fraction = 1; fraction < 0x800000; fraction = fraction * 3 / 2 + 1)
    for (std::uint32_t sign : {0u, 0x80000000u}) nans.push_back(float_of(sign | 0x7f800000 | fraction));
  nans.push_back(float_of(0x7fffffff));
  nans.push_back(float_of(0xffffffff));
  for (DType dtype : {DType::kFloat16, DType::kBFloat16})
    check_cast<float, std::uint16_t>(nans, DType::kFloat32, dtype, [&](float from, std::uint16_t to) {
      return std::isnan(from) && std::isnan(value_of(dtype, to));
    });
}

TEST(half_and_bfloat_convert_with_one_rounding) {
  check_cast<std::uint16_t, std::uint16_t>(
      all_shorts(), DType::kFloat16, DType::kBFloat16, [](std::uint16_t from, std::uint16_t to) {
        return same(value_of_bfloat(to), rounded_to_bfloat(value_of_half(from)));
      });
  check_cast<std::uint16_t, std::uint16_t>(
      all_shorts(), DType::kBFloat16, DType::kFloat16, [](std::uint16_t from, std::uint16_t to) {
        return same(value_of_half(to), rounded_to_half(value_of_bfloat(from)));
      });
}

TEST(convert_writes_exactly_the_elements_asked_for) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  for (std::size_t count : {0u, 1u, 7u, 8u, 9u, 511u, 512u, 513u, 1024u, 1100u})
    for (DType from : kTypes)
      for (DType to : kTypes) {
        const std::vector<char> source((count + 1) * size_of(from), 0);
        std::vector<char> target((count + 1) * size_of(to), 'x');
        convert(source.data(), from, target.data(), to, count);
        const auto end = target.begin() + static_cast<std::ptrdiff_t>(count * size_of(to));
        CHECK(std::all_of(target.begin(), end, [](char byte) { return byte == 0; }), std::to_string(count));
        CHECK(std::all_of(end, target.end(), [](char byte) { return byte == 'x'; }), std::to_string(count));
      }
}

TEST(all_within_finds_one_bad_element_anywhere) {
  for (std::size_t count : {1u, 7u, 8u, 33u, 64u, 100u}) {
    std::vector<float> floats(count, -3.4e38f);
    std::vector<std::uint16_t> halves(count, 0xfbff), bfloats(count, 0xff7f);  // the largest finite ones
    CHECK(cpu::all_within(floats.data(), DType::kFloat32, count, FLT_MAX));
    CHECK(cpu::all_within(halves.data(), DType::kFloat16, count, FLT_MAX));
    CHECK(cpu::all_within(bfloats.data(), DType::kBFloat16, count, FLT_MAX));
    for (std::size_t position = 0; position < count; ++position) {
      for (float bad : {INFINITY, -INFINITY, NAN, float_of(0x7f800001)}) {
        floats[position] = bad;
        CHECK(!cpu::all_within(floats.data(), DType::kFloat32, count, FLT_MAX));
      }
      for (std::uint16_t bad : {0x7c00, 0xfc00, 0x7e00, 0xfc01}) {
        halves[position] = bad;
        CHECK(!cpu::all_within(halves.data(), DType::kFloat16, count, FLT_MAX));
      }
      for (std::uint16_t bad : {0x7f80, 0xff80, 0x7fc0, 0xff81}) {
        bfloats[position] = bad;
        CHECK(!cpu::all_within(bfloats.data(), DType::kBFloat16, count, FLT_MAX));
      }
      floats[position] = 0, halves[position] = 0, bfloats[position] = 0;
    }
  }
  CHECK(cpu::all_within(nullptr, DType::kFloat32, 0, FLT_MAX));
}

TEST(all_within_is_exact_at_the_limit_of_every_type) {
  for (const float limit : {0.0f, 1.0f, 3.14159f, 1e-7f, 65503.0f, 65504.0f, 1e30f, FLT_MAX}) {
    for (std::uint32_t bits = 0; bits < kHalves; ++bits)
      for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
        const auto value = static_cast<std::uint16_t>(bits);
        const double magnitude = std::abs(value_of(dtype, value));
        CHECK(cpu::all_within(&value, dtype, 1, limit) == (magnitude <= static_cast<double>(limit)),
              std::to_string(magnitude) + " within " + std::to_string(limit));
      }
    for (const float value : {limit, -limit, std::nextafter(limit, 0.0f), std::nextafter(limit, INFINITY)})
      CHECK(cpu::all_within(&value, DType::kFloat32, 1, limit) == (std::abs(value) <= limit));
  }
}

std::vector<float> normalized(const std::vector<float>& rows, std::size_t width) {
  std::vector<float> out(rows.size());
  cpu::normalize_rows(rows.data(), DType::kFloat32, out.data(), DType::kFloat32, rows.size() / width, width);
  return out;
}

TEST(normalize_survives_huge_zero_and_tiny_rows) {
  for (float scale : {3.4e38f, 1e30f, 1.f, 1e-11f})
    for (std::size_t width : {1u, 3u, 8u, 17u, 128u}) {
      std::vector<float> row(width, scale);
      row[0] = -scale;
      const auto unit = normalized(row, width);
      const double expected = 1 / std::sqrt(static_cast<double>(width));
      for (std::size_t i = 0; i < width; ++i)
        CHECK(std::abs(unit[i] - (i == 0 ? -expected : expected)) < 1e-7, std::to_string(scale));
    }
  CHECK(normalized({0.f, -0.f, 0.f}, 3) == std::vector<float>({0.f, 0.f, 0.f}));
  CHECK(normalized({3e-20f, -4e-20f}, 2) == std::vector<float>({3e-8f, -4e-8f}));  // the norm counts as 1e-12
  CHECK(normalized({1e-45f}, 1)[0] == float_of(1) / 1e-12f);
}

TEST(normalize_and_add_cast_at_the_border) {
  const std::vector<std::uint16_t> bfloats = {bfloat_of(3), bfloat_of(-4)};
  std::vector<std::uint16_t> out(2);
  cpu::normalize_rows(bfloats.data(), DType::kBFloat16, out.data(), DType::kBFloat16, 1, 2);
  CHECK(value_of_bfloat(out[0]) == rounded_to_bfloat(0.6) &&
        value_of_bfloat(out[1]) == rounded_to_bfloat(-0.8));

  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (std::size_t count : {1u, 511u, 512u, 513u, 1100u}) {
    std::vector<float> left(count), sum(count);
    std::vector<std::uint16_t> right(count), short_sum(count);
    for (std::size_t i = 0; i < count; ++i)
      left[i] = normal(random), right[i] = bfloat_of(rounded_to_bfloat(normal(random)));
    cpu::add(left.data(), DType::kFloat32, right.data(), DType::kBFloat16, sum.data(), DType::kFloat32,
             count);
    cpu::add(right.data(), DType::kBFloat16, left.data(), DType::kFloat32, short_sum.data(), DType::kBFloat16,
             count);
    for (std::size_t i = 0; i < count; ++i) {
      CHECK(sum[i] == left[i] + value_of_bfloat(right[i]));
      CHECK(value_of_bfloat(short_sum[i]) == rounded_to_bfloat(sum[i]));
    }
  }
}

TEST(bfloat_of_reads_back) { CHECK(bits_of(value_of_bfloat(bfloat_of(1.5))) == bits_of(1.5f)); }

}  // namespace
}  // namespace fct::testing
