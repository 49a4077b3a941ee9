#include "fake_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/convert.h"
#include "rounding.h"

namespace fct::testing {
namespace {

using cuda::Extent;
using cuda::Matrix;
using cuda::RowChecks;

// E4M3: no infinities; 448 is the largest, what is larger becomes it.
double value_of_float8(std::uint8_t bits) {
  const int exponent = (bits >> 3) & 15, fraction = bits & 7;
  double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  if ((bits & 0x7f) == 0x7f) magnitude = NAN;
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

std::uint8_t float8_of(double value) {
  if (std::isnan(value)) return 0x7f;
  static const std::vector<double> magnitudes = [] {
    std::vector<double> values;
    for (std::uint8_t bits = 0; bits < 0x7f; ++bits) values.push_back(value_of_float8(bits));
    return values;
  }();
  const double wanted = std::min(std::abs(rounded(value, 4, -6, 1e300)), magnitudes.back());
  const auto found = std::lower_bound(magnitudes.begin(), magnitudes.end(), wanted) - magnitudes.begin();
  return static_cast<std::uint8_t>(found | (std::signbit(value) ? 0x80 : 0));
}

char* element(const Matrix& matrix, std::int64_t row, std::int64_t column) {
  return static_cast<char*>(matrix.data) +
         static_cast<std::size_t>(row * matrix.stride + column) * size_of(matrix.dtype);
}

void pad(const Matrix& to, std::int64_t row, Extent extent) {
  for (std::int64_t column = extent.columns; column < extent.padded; ++column)
    store_element(to, row, column, 0);
}

void note(RowChecks checks, std::int64_t row) {
  if (checks.first_bad != nullptr) *checks.first_bad = std::min(*checks.first_bad, row);
}

}  // namespace

float load_element(const Matrix& matrix, std::int64_t row, std::int64_t column) {
  const char* from = element(matrix, row, column);
  if (matrix.dtype == DType::kFloat8)
    return static_cast<float>(value_of_float8(static_cast<std::uint8_t>(*from))) / matrix.scale;
  const DType stored = matrix.dtype == DType::kTf32 ? DType::kFloat32 : matrix.dtype;
  float value;
  cpu::convert(from, stored, &value, DType::kFloat32, 1);
  return value;
}

void store_element(const Matrix& matrix, std::int64_t row, std::int64_t column, float value) {
  char* to = element(matrix, row, column);
  if (matrix.dtype == DType::kFloat8) {
    *to = static_cast<char>(float8_of(value * matrix.scale));
  } else if (matrix.dtype == DType::kTf32) {
    const auto nearest = static_cast<float>(rounded_to_tf32(value));
    std::memcpy(to, &nearest, sizeof nearest);
  } else {
    cpu::convert(&value, DType::kFloat32, to, matrix.dtype, 1);
  }
}

float activated(float value, Activation activation) {
  if (activation == Activation::kRelu) return value < 0 ? 0.f : value;
  if (activation == Activation::kGelu) return 0.5f * value * (1 + std::erf(value / std::sqrt(2.f)));
  return value;
}

void load_rows(const Matrix& from, const Matrix& to, Extent extent, std::int64_t block_rows,
               RowChecks checks) {
  for (std::int64_t row = 0; row < block_rows; ++row) {
    for (std::int64_t column = 0; column < extent.columns; ++column) {
      const float value = row < extent.rows ? load_element(from, row, column) : 0;
      store_element(to, row, column, value);
      if (!std::isfinite(value)) note(checks, row);
      if (!std::isfinite(value) || !std::isfinite(load_element(to, row, column)) ||
          std::abs(value) > checks.largest)
        checks.flags[row] = 1;
    }
    pad(to, row, extent);
  }
}

void store_rows(const Matrix& from, const Matrix& to, Extent extent, RowChecks checks) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    bool finite = checks.flags[row] == 0;
    for (std::int64_t column = 0; column < extent.columns; ++column) {
      store_element(to, row, column, load_element(from, row, column));
      finite = finite && std::isfinite(load_element(to, row, column));
    }
    if (finite) continue;
    note(checks, row);
    for (std::int64_t column = 0; column < extent.columns; ++column) store_element(to, row, column, NAN);
  }
}

void convert_rows(const Matrix& from, const Matrix& to, Extent extent, Activation activation) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    for (std::int64_t column = 0; column < extent.columns; ++column)
      store_element(to, row, column, activated(load_element(from, row, column), activation));
    pad(to, row, extent);
  }
}

void flag_rows(const Matrix& from, Extent extent, std::uint8_t* flags) {
  for (std::int64_t row = 0; row < extent.rows; ++row)
    for (std::int64_t column = 0; column < extent.columns; ++column)
      if (!std::isfinite(load_element(from, row, column))) flags[row] = 1;
}

void add_rows(const Matrix& left, const Matrix& right, const Matrix& to, Extent extent) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    for (std::int64_t column = 0; column < extent.columns; ++column)
      store_element(to, row, column, load_element(left, row, column) + load_element(right, row, column));
    pad(to, row, extent);
  }
}

void normalize_rows(const Matrix& from, const Matrix& to, Extent extent) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    double sum = 0;
    for (std::int64_t column = 0; column < extent.columns; ++column) {
      const double value = load_element(from, row, column);
      sum += value * value;
    }
    const double norm = std::max(std::sqrt(sum), 1e-12);
    for (std::int64_t column = 0; column < extent.columns; ++column)
      store_element(to, row, column, static_cast<float>(load_element(from, row, column) / norm));
    pad(to, row, extent);
  }
}

}  // namespace fct::testing
