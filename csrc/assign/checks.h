#pragma once

#include <cfloat>
#include <initializer_list>
#include <optional>
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

inline void check_groups(const Groups& groups, int dim) {
  if (groups.count > Groups::kMost)
    fail(std::to_string(groups.count) + " groups, wanted at most " + std::to_string(Groups::kMost));
  check_values(groups.centers, "centers", {groups.count, dim});
  if (groups.probes < 1 || groups.probes > groups.count)
    fail("probes is " + std::to_string(groups.probes) + ", wanted 1 to " + std::to_string(groups.count) +
         ", the groups");
}

inline void check_directions(const Directions& directions, int dim) {
  check_values(directions.values, "directions", {directions.count, dim});
  if (directions.dim != dim || directions.count > dim)
    fail(std::to_string(directions.count) + " directions of " + std::to_string(directions.dim) +
         " dims, wanted at most as many as rows have dims: " + std::to_string(dim));
}

inline void check_codebooks(const Codebooks& codebooks) {
  check_values(codebooks.values, "codebooks", {codebooks.parts, Codebooks::kEntries, codebooks.part_dim});
}

// Of what an assigner is made from.
inline void check_parts(const std::optional<Centroids>& centroids,
                        const std::optional<Codebooks>& codebooks) {
  if (!centroids && !codebooks) fail("neither centroids nor codebooks are given");
  if (centroids) check_centroids(*centroids);
  if (codebooks) check_codebooks(*codebooks);
  if (codebooks && codebooks->by_residual && !centroids) fail("residuals need centroids");
  if (centroids && codebooks && codebooks->parts * codebooks->part_dim != centroids->dim)
    fail("codebooks are for rows of " + std::to_string(codebooks->parts * codebooks->part_dim) +
         " dims, centroids have " + std::to_string(centroids->dim));
}

inline void check_rows(const float* rows, std::int64_t count, int dim) {
  const std::int64_t bad = cpu::first_bad_row(rows, DType::kFloat32, count, dim);
  if (bad != cpu::kNoRow) throw NonFiniteRow("rows", bad);
}

}  // namespace fct::assign
