// What a correct executable may answer: each element's exact value, and how far rounding on the way can move
// it.
#pragma once

#include <cstdint>
#include <vector>

#include "fct/dtype.h"
#include "fct/program.h"
#include "random_programs.h"

namespace fct::testing {

struct Bounded {
  double value = 0;
  double error = 0;
};

using BoundedRow = std::vector<Bounded>;

// Runs one row through the program as its definition reads, in double. With bf16, whatever a linear layer
// reads, weights included, counts as rounded to bfloat16.
BoundedRow evaluate(const Program& program, Precision precision, const Rows& old, const Rows& side,
                    std::int64_t row);

// Throws unless `out` row `row` is what evaluate() allows, stored as out's dtype.
void check_row(const BoundedRow& expected, const Rows& out, std::int64_t row, const Program& program);

}  // namespace fct::testing
