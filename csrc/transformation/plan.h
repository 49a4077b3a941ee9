// Where every value of a program lives while one tile of rows passes through it.
#pragma once

#include <vector>

#include "fct/dtype.h"
#include "fct/engine.h"
#include "fct/program.h"

namespace fct {

// How each value is stored. With a precision whose storage is short, every value that a linear layer reads,
// directly or gathered by a concat, is kept short (its sums are float32); norms, sums that no layer reads and
// the output stay in float32. With fp8, what is also read by something else, as the rows that a residual
// block adds to, is bfloat16, and so are the products of layers that read it: float8 is too coarse to go on
// with. With int8 it is float32, and rounded again by each layer that reads it.
std::vector<DType> storage_types(const Program& program, Precision precision);

// Slots of memory for values of the given bytes per row, reused once their value has been read for the last
// time. A value lives in the slot of its owner: itself, or a value that it is a part of.
struct Slots {
  std::vector<int> slot;           // by ValueId; -1: no owner, never used
  std::vector<std::size_t> bytes;  // bytes per row of each slot
};

Slots assign_slots(const Program& program, const std::vector<std::size_t>& bytes,
                   const std::vector<ValueId>& owner);

// The range of each value, 0 where none is known: of a value that linear layers read its own, and one for all
// parts of a concat that is stored as `low`, because a layer that reads it has one scale for its input.
//
// Throws Error(kArray), naming `precision`, if a value that a linear layer reads has no finite one.
std::vector<float> shared_ranges(const Program& program, const std::vector<DType>& types, DType low,
                                 const Ranges& ranges, Precision precision);

struct Plan {
  struct Value {
    DType dtype = DType::kFloat32;       // how it is stored
    DType multiplied = DType::kFloat32;  // what linear layers make of it before they multiply
    float scale = 1;                     // value = scale * integer, where that is an integer
    int slot = -1;
  };
  std::vector<Value> values;            // by ValueId; slot -1: never used
  std::vector<std::size_t> slot_bytes;  // bytes per row of each slot

  std::size_t bytes_per_row() const;
};

// Throws as shared_ranges() does, if the precision needs ranges.
Plan make_plan(const Program& program, Precision precision, const Ranges& ranges = {});

}  // namespace fct
