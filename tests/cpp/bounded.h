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

// Runs one row through the program as its definition reads, in double. With a short precision, whatever a
// linear layer reads, weights included, counts as rounded to it; fp8 and int8 need the ranges that set their
// scales.
BoundedRow evaluate(const Program& program, Precision precision, const Rows& old, const Rows& side,
                    std::int64_t row, const Ranges& ranges = {});

// The largest absolute value of each value of the program over the given rows.
Ranges measured_ranges(const Program& program, const Rows& old, const Rows& side, std::int64_t rows);

// Ranges that hold whatever normal rows come to: nothing is cut.
Ranges roomy_ranges(Random& random, const Program& program);

// Throws unless `out` row `row` is what evaluate() allows, stored as out's dtype.
void check_row(const BoundedRow& expected, const Rows& out, std::int64_t row, const Program& program);

}  // namespace fct::testing
