// The seam between the tile loop and the library that multiplies matrices.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fct/dtype.h"
#include "fct/program.h"

namespace fct::cpu {

// One fused linear layer, output = activation(input @ weight.T + bias), for a few fixed row counts.
class LinearOp {
 public:
  virtual ~LinearOp() = default;
  // `tile` indexes the row counts it was made for; input is (rows, d_in), output (rows, d_out), C-contiguous.
  // Runs on the calling thread only. `scratch` is 64-byte aligned and at least scratch_bytes() long.
  virtual void run(std::size_t tile, const void* input, void* output, void* scratch) const = 0;
  virtual std::size_t scratch_bytes() const = 0;
  virtual std::string kernel() const = 0;
};

// One side of a layer: how wide, how it is stored, and what is multiplied. The two differ only where float32
// is stored and integers are multiplied; then value = scale * integer.
struct Operand {
  Operand(int columns, DType type) : width(columns), stored(type), multiplied(type) {}
  Operand(int columns, DType type, DType product, float unit)
      : width(columns), stored(type), multiplied(product), scale(unit) {}

  int width;
  DType stored, multiplied;
  float scale = 1;
};

class LinearLibrary {
 public:
  virtual ~LinearLibrary() = default;
  // Row counts are given largest first; weights are packed once and shared by all of them.
  virtual std::unique_ptr<LinearOp> make(const Linear& layer, const Operand& input, const Operand& output,
                                         const std::vector<int>& tile_rows) const = 0;
};

std::unique_ptr<LinearLibrary> make_onednn_library();

// What oneDNN computes with: the CPU's instruction set, or less where ONEDNN_MAX_CPU_ISA says so.
struct InstructionSet {
  std::string name;  // as ONEDNN_MAX_CPU_ISA spells it, AVX2 for instance
  int float_lanes;   // of its registers: 4, 8 or 16
  bool has_bf16;     // bfloat16 products are instructions; otherwise they are emulated, or not there at all
};
InstructionSet onednn_instruction_set();

// Up to which size 8-bit weights give exact sums on this CPU, found by trying the worst there are: 127 where
// products are summed in 32 bits; 64 where pairs of them are summed in 16, which saturate beyond; 0: never.
int largest_exact_weight();

}  // namespace fct::cpu
