// Where every value of a program lives on the device while one block of rows passes through it.
#pragma once

#include <cstdint>
#include <vector>

#include "fct/engine.h"
#include "fct/program.h"

namespace fct::cuda {

// Note [Gathered concat]
// Matrix kernels want widths and addresses that are multiples of 16 elements, so every value is padded with
// zero columns. A concat that only linear layers read is never copied together: each part begins at a
// multiple of 16 and its producer writes it there; the layers that read the concat have zero columns in their
// weights where it is padded. Any other concat is dense, and copied.
struct Layout {
  struct Value {
    DType dtype = DType::kFloat32;
    float scale = 1;          // see Matrix; 1 except in float8
    int slot = -1;            // -1: never used
    ValueId owner = -1;       // itself, or the gathered concat that it lies in
    std::int64_t column = 0;  // of the owner, where the value begins
    std::int64_t stride = 0;  // elements from row to row
    std::vector<int> parts;   // logical widths that are padded one by one; one unless it is gathered

    std::int64_t padded() const;
  };
  std::vector<Value> values;            // by ValueId
  std::vector<std::size_t> slot_bytes;  // bytes per row

  std::size_t bytes_per_row() const;
};

std::int64_t padded_width(std::int64_t width);

// Throws Error(kArray) if precision is fp8 and `ranges` lacks a value that a linear layer reads.
Layout make_layout(const Program& program, Precision precision, const Ranges& ranges);

// The power of two that values up to `range` are multiplied with before they are stored in float8, so that
// twice the range still fits; 1 if the range is 0.
float float8_scale(float range);

}  // namespace fct::cuda
