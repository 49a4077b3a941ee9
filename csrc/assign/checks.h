#pragma once

#include <cfloat>
#include <initializer_list>
#include <string>
#include <vector>

#include "cpu/convert.h"
#include "fct/assign.h"
#include "fct/error.h"

namespace fct::assign {

[[noreturn]] inline void fail(const std::string& message) { throw Error(ErrorKind::kArray, message); }

inline void check_values(const std::vector<float>& values, const char* name,
                         std::initializer_list<int> shape) {
  std::size_t count = 1;
  for (int size : shape) count *= static_cast<std::size_t>(std::max(size, 0));
  if (count == 0 || values.size() != count)
    fail(std::string(name) + " holds " + std::to_string(values.size()) + " values, wanted " +
         std::to_string(count) + ", and at least one");
  if (!cpu::all_within(values.data(), DType::kFloat32, count, FLT_MAX))
    fail(std::string(name) + " holds NaN or infinity");
}

inline void check_centroids(const Centroids& centroids) {
  check_values(centroids.values, "centroids", {centroids.count, centroids.dim});
}

inline void check_codebooks(const Codebooks& codebooks) {
  check_values(codebooks.values, "codebooks", {codebooks.parts, Codebooks::kEntries, codebooks.part_dim});
}

inline void check_rows(const float* rows, std::int64_t count, int dim) {
  const std::int64_t bad = cpu::first_bad_row(rows, DType::kFloat32, count, dim);
  if (bad != cpu::kNoRow) throw NonFiniteRow("rows", bad);
}

}  // namespace fct::assign
