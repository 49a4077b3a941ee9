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

class LinearLibrary {
 public:
  virtual ~LinearLibrary() = default;
  // Row counts are given largest first; weights are packed once and shared by all of them.
  virtual std::unique_ptr<LinearOp> make(const Linear& layer, int d_in, int d_out, DType input, DType output,
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

}  // namespace fct::cpu
