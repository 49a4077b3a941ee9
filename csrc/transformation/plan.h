// Where every value of a program lives while one tile of rows passes through it.
#pragma once

#include <vector>

#include "fct/dtype.h"
#include "fct/program.h"

namespace fct {

struct Plan {
  struct Value {
    DType dtype = DType::kFloat32;
    int slot = -1;
  };
  std::vector<Value> values;            // by ValueId; slot -1: never used
  std::vector<std::size_t> slot_bytes;  // bytes per row of each slot

  std::size_t bytes_per_row() const;
};

// With precision bf16, every value that a linear layer reads is kept in bfloat16 (its sums are float32);
// norms, sums that no layer reads and the output stay in float32. Slots are reused once their value has been
// read for the last time.
Plan make_plan(const Program& program, Precision precision);

}  // namespace fct
