// Read, transform, write and index at the same time, block by block, in bounded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "fct/engine.h"

namespace fct {

// Buffers for one block of rows; they travel through the stages and come back.
struct Block {
  HostMemory old, side, out;
  DeviceAllocation kept;  // the results again, as float32 rows on the device, for the index; may be null
};

enum class Keep { kNothing, kRows, kNormalizedRows };

struct PipelineConfig {
  std::int64_t block_rows = 0;
  int blocks = 4;  // one per stage at work; and one for each further run in flight
  int threads = 1;
  DType old_dtype = DType::kFloat32;
  DType side_dtype = DType::kFloat32;
  DType out_dtype = DType::kFloat32;
  bool side_is_old = false;    // feed `old` as side-information
  Keep keep = Keep::kNothing;  // what stays on the device, if it has memory for it
};

// The stages' work on files and index, supplied by the caller. Each runs on a thread of its own, blocks in
// order. When a stage returns, it has read what it wanted of the block, on the device too.
struct PipelineStages {
  std::function<std::int64_t(int block)> read;              // fills the block, returns its rows; 0 ends
  std::function<void(int block, std::int64_t rows)> write;  // results of the block
  std::function<void(int block, std::int64_t rows)> index;  // likewise; may be empty
  std::function<void()> poll;                               // on the calling thread, now and then; may throw
};

// Seconds each stage was at work, and the whole.
struct PipelineTimes {
  double read = 0, transform = 0, write = 0, index = 0, wall = 0;
  std::int64_t rows = 0;
};

// Runs until `read` returns 0. The first error of any stage stops all, every thread is joined, and it is
// rethrown; the row of a NonFiniteRow then counts from the first row read.
PipelineTimes run_pipeline(const Executable& executable, const PipelineConfig& config,
                           std::vector<Block>& blocks, const PipelineStages& stages);

std::vector<Block> allocate_blocks(const Executable& executable, const PipelineConfig& config);

}  // namespace fct
