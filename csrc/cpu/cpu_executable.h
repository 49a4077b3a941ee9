#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "fct/engine.h"
#include "kept.h"
#include "linear_op.h"
#include "plan.h"

namespace fct::cpu {

// 64-byte aligned buffers of one thread: every slot of the plan for the largest tile, and scratch.
class Workspace {
 public:
  Workspace(const Plan& plan, int rows, std::size_t scratch_bytes);
  void* slot(int index) const { return base_ + offsets_[static_cast<std::size_t>(index)]; }
  void* scratch() const { return base_ + offsets_.back(); }

 private:
  struct Free {
    void operator()(char* pointer) const;
  };
  std::vector<std::size_t> offsets_;  // one per slot, then scratch
  std::unique_ptr<char, Free> memory_;
  char* base_;
};

class CpuExecutable : public Executable {
 public:
  CpuExecutable(const Program& program, Precision precision, const LinearLibrary& library,
                const Ranges& ranges = {});
  ~CpuExecutable() override;

  void run(InputRows old, InputRows side, OutputRows out, std::int64_t rows, int threads) const override;
  int old_dim() const override { return program_.width(program_.old); }
  int side_dim() const override { return program_.has_side() ? program_.width(program_.side) : 0; }
  int new_dim() const override { return program_.width(program_.output); }
  Precision precision() const override { return precision_; }
  std::string description() const override;

 private:
  struct Call;      // the arguments of one run() and where it stands
  struct Stretch {  // rows in tiles of one size, up to where the next one begins
    std::int64_t first_row;
    std::size_t tile;
  };

  Operand operand(ValueId value) const;
  void keep_equal_tiles();
  std::size_t next_tile(std::int64_t rows_left, std::int64_t threads) const;
  std::vector<Stretch> stretches(std::int64_t rows, std::int64_t threads) const;
  void work(Call& call) const;
  void run_tile(Call& call, Workspace& workspace, std::int64_t first_row, std::size_t tile) const;
  void run_step(std::size_t index, std::size_t tile, std::vector<void*>& values, void* scratch) const;

  Program program_;  // without the weights: those live packed in linears_
  Precision precision_;
  Plan plan_;
  float largest_input_;                             // beyond it, see bounds.h, a row is refused
  std::vector<int> tile_rows_;                      // largest first
  std::vector<std::size_t> usable_tiles_;           // into tile_rows_; see Note [Same bytes]
  std::vector<std::unique_ptr<LinearOp>> linears_;  // by step; null where the step is not linear
  std::size_t scratch_bytes_ = 0;
  mutable Kept<Workspace> workspaces_;
};

}  // namespace fct::cpu
