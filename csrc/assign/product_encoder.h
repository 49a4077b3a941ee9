#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "fct/assign.h"

namespace fct::assign {

// The nearest entry of each part's codebook, for a few rows at once.
class ProductEncoder {
 public:
  explicit ProductEncoder(Codebooks codebooks) : codebooks_(std::move(codebooks)) {}

  int dim() const { return codebooks_.parts * codebooks_.part_dim; }
  int parts() const { return codebooks_.parts; }
  bool by_residual() const { return codebooks_.by_residual; }

  // rows is (count, dim), less centroids[lists[row]] if centroids are given; codes is (count, parts).
  // `scratch` keeps its memory from call to call.
  void encode(const float* rows, std::int64_t count, const float* centroids, const std::int64_t* lists,
              std::uint8_t* codes, std::vector<float>& scratch) const;

 private:
  Codebooks codebooks_;
};

}  // namespace fct::assign
