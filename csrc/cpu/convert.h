// Loops over rows that are not matrix products: casts, checks, sums, norms. All vectorised, all
// order-independent of where a row lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "fct/dtype.h"

namespace fct::cpu {

// Copies `count` elements, casting. Rounds to nearest even.
void convert(const void* from, DType from_type, void* to, DType to_type, std::size_t count);

// True if no element is NaN or infinite.
bool all_finite(const void* data, DType dtype, std::size_t count);

constexpr std::int64_t kNoRow = std::numeric_limits<std::int64_t>::max();

inline const void* row_of(const void* data, DType dtype, std::int64_t row, int width) {
  return static_cast<const char*>(data) +
         static_cast<std::size_t>(row) * static_cast<std::size_t>(width) * size_of(dtype);
}

// The first of `rows` rows that holds NaN or infinity, kNoRow if none does.
std::int64_t first_bad_row(const void* data, DType dtype, std::int64_t rows, int width);

// out[i] = left[i] + right[i], summed in float32.
void add(const void* left, DType left_type, const void* right, DType right_type, void* out, DType out_type,
         std::size_t count);

// Divides each row by its L2 norm (at least 1e-12), computed in float64.
void normalize_rows(const void* in, DType in_type, void* out, DType out_type, std::size_t rows,
                    std::size_t width);

}  // namespace fct::cpu
