// Linear layers of 8-bit integers by oneDNN's inner product.
#pragma once

#include <memory>
#include <vector>

#include "linear_op.h"

namespace fct::cpu {

// Rows are rounded to integers by one scale, weights by one for each row of theirs, to at most
// `largest_weight`: no sum saturates, and sums are exact. Float32 input is rounded here. Throws
// Error(kUnsupported) for layers so wide that 32 bits would not hold a sum, and for a largest weight of 0.
std::unique_ptr<LinearOp> make_integer_linear(const Linear& layer, const Operand& input,
                                              const Operand& output, const std::vector<int>& tile_rows,
                                              int largest_weight);

}  // namespace fct::cpu
