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

// Values that only linear layers read are kept in bfloat16 if the precision is bf16; sums, norms and the output
// stay in float32. Slots are reused as soon as their value has been read for the last time.
Plan make_plan(const Program& program, Precision precision);

}  // namespace fct
