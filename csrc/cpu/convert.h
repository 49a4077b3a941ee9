// Loops over rows that are not matrix products: casts, checks, sums, norms. All vectorised, all
// order-independent of where a row lies.
#pragma once

#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "fct/dtype.h"

namespace fct::cpu {

// Copies `count` elements, casting. Rounds to nearest even. An integer is worth `scale` times itself; values
// that no integer holds are cut.
void convert(const void* from, DType from_type, void* to, DType to_type, std::size_t count, float scale = 1);

// True if no element is NaN, infinite, or larger than `limit` in absolute value.
bool all_within(const void* data, DType dtype, std::size_t count, float limit);

constexpr std::int64_t kNoRow = std::numeric_limits<std::int64_t>::max();

inline const void* row_of(const void* data, DType dtype, std::int64_t row, int width) {
  return static_cast<const char*>(data) +
         static_cast<std::size_t>(row) * static_cast<std::size_t>(width) * size_of(dtype);
}

// The first of `rows` rows with an element that is not within `limit`, kNoRow if there is none.
std::int64_t first_row_beyond(const void* data, DType dtype, std::int64_t rows, int width, float limit);

// The first of `rows` rows that holds NaN or infinity, kNoRow if none does.
inline std::int64_t first_bad_row(const void* data, DType dtype, std::int64_t rows, int width) {
  return first_row_beyond(data, dtype, rows, width, FLT_MAX);
}

// out[i] = left[i] + right[i], summed in float32.
void add(const void* left, DType left_type, const void* right, DType right_type, void* out, DType out_type,
         std::size_t count, float out_scale = 1);

// Divides each row by its L2 norm (at least 1e-12), computed in float64.
void normalize_rows(const void* in, DType in_type, void* out, DType out_type, std::size_t rows,
                    std::size_t width, float out_scale = 1);

}  // namespace fct::cpu
