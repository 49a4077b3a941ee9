#pragma once

#include <cstdint>
#include <vector>

#include "fct/assign.h"

namespace fct::assign {

// The parts of vectors along some directions, as many as panels have columns or a multiple. See Note [Leading
// directions].
class Projection {
 public:
  // Throws Error(kArray) if the directions are not orthonormal.
  explicit Projection(const Directions& directions);

  int dim() const { return dim_; }        // of what is projected
  int parts() const { return parts_; }    // of what comes out; those beyond the directions are 0
  float error() const { return error_; }  // of a product of what comes out, for lengths of 1

  // vectors is (count, dim), out (count, parts).
  void apply(const float* vectors, std::int64_t count, float* out) const;

  // How long a vector is along the directions, and what it leaves beside them, neither too short.
  struct Lengths {
    float along, rest;
  };
  Lengths lengths(float length, const float* projected) const;

 private:
  void check(const Directions& directions) const;
  int dim_, parts_;
  float error_;
  std::vector<float> columns_;  // (parts / kColumns, dim, kColumns)
};

}  // namespace fct::assign
