#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "block_trial.h"
#include "device_program.h"
#include "fct/engine.h"
#include "ring.h"

namespace fct::cuda {

// A program on one device.
class CudaExecutable : public DeviceExecutable {
 public:
  // `device_memory`: bytes to stay within; 0: most of what is free. Throws OutOfDeviceMemory if that is not
  // enough for the smallest block.
  CudaExecutable(SharedDevice device, const Program& program, Precision precision, const Ranges& ranges,
                 std::size_t device_memory, const Clock& clock = wall_clock);

  void run(InputRows old, InputRows side, OutputRows out, std::int64_t rows, int threads) const override;
  std::unique_ptr<PendingRun> start(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                                    int threads, KeptRows kept) const override;
  int runs_in_flight() const override { return 2; }
  HostMemory allocate_host(std::size_t bytes) const override;
  DeviceAllocation allocate_device(std::size_t bytes) const override;
  void run_on_device(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                     void* stream) const override;

  int old_dim() const override { return old_dim_; }
  int side_dim() const override { return side_dim_; }
  int new_dim() const override { return new_dim_; }
  Precision precision() const override { return precision_; }
  std::string device() const override { return device_->label(); }
  std::size_t device_bytes() const override { return device_bytes_; }
  std::string description() const override;

 private:
  void build_what_fits(const Program& program, const Layout& layout, std::int64_t largest_block,
                       const Clock& clock);
  void build(const Program& program, const Layout& layout, std::int64_t largest_block, const Clock& clock);
  BlockTrial load(const Program& program, const Layout& layout, std::int64_t largest_block, int choice);
  std::int64_t fastest_block(BlockTrial& trial, const Clock& clock);

  SharedDevice device_;
  Precision precision_;
  int old_dim_, side_dim_, new_dim_;
  std::shared_ptr<DeviceProgram> program_;
  std::unique_ptr<Ring> ring_;
  std::size_t device_bytes_ = 0;
  std::size_t spare_memory_ = 0;           // bytes that the limit leaves for rows to be kept
  std::vector<std::size_t> usable_sizes_;  // into program_->blocks(); see Note [Same bytes]
  std::string shrunk_;                     // why the block is smaller than it might be
  std::string speeds_;                     // of blocks that could be the largest
};

}  // namespace fct::cuda
