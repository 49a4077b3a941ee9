// A program on one device: weights resident, buffers for one block of rows, a graph per block size.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device_handles.h"
#include "fct/engine.h"
#include "layout.h"

namespace fct::cuda {

constexpr std::size_t kCheckedArrays = 3;  // old, side and result

// Rows in device memory, dense.
struct BlockRows {
  InputRows old, side;
  OutputRows out;
  std::int64_t rows = 0;
  std::int64_t* first_bad = nullptr;  // of each checked array; null: nobody asks
};

class DeviceProgram {
 public:
  // `sizes`: rows of a block, largest first; kernels are chosen that can do them all, so that the choice does
  // not depend on `largest_block`, the first of them that is kept. `choice`: see LinearSpec. Throws
  // OutOfDeviceMemory if the buffers do not fit.
  DeviceProgram(SharedDevice device, const Program& program, Precision precision, const Layout& layout,
                const std::vector<std::int64_t>& sizes, std::int64_t largest_block, int choice);
  ~DeviceProgram();
  DeviceProgram(const DeviceProgram&) = delete;
  DeviceProgram& operator=(const DeviceProgram&) = delete;

  // Enqueues one block of size `size` (an index) that holds block.rows rows. The buffers between are shared:
  // blocks follow each other on the device whatever their streams are.
  void enqueue(std::size_t size, const BlockRows& block, Stream stream);
  // Enqueues any number of rows in blocks of the sizes whose indices are given, largest first. The blocks'
  // `first_bad` follow each other. Returns the first row of each block.
  std::vector<std::int64_t> enqueue_blocks(const std::vector<std::size_t>& sizes, const BlockRows& rows,
                                           Stream stream);

  const std::vector<std::int64_t>& blocks() const { return blocks_; }  // kept sizes
  Precision precision() const { return precision_; }
  std::string kernels() const;

  // Device memory it takes: for any block, and for each row of the largest one.
  static std::size_t fixed_bytes(const Program& program, const Layout& layout);
  static std::size_t bytes_per_row(const Program& program, const Layout& layout);

 private:
  // A linear layer, and what it leaves to be done where no kernel does all of it at once.
  struct LinearStep {
    std::unique_ptr<PreparedLinear> layer;
    Matrix result;  // of the layer; nothing is left to be done if it is null
    Activation activation = Activation::kNone;
  };

  Matrix matrix(ValueId value) const;
  Extent extent(ValueId value, std::int64_t rows) const;
  LinearStep prepare(const Linear& linear, const std::vector<std::int64_t>& sizes, int choice);
  void capture_graphs();
  void enqueue_step(std::size_t index, std::size_t size, Stream stream);
  void flag_overflow(ValueId value, std::int64_t rows, Stream stream);
  void enqueue_concat(const Concat& concat, std::int64_t rows, Stream stream);

  SharedDevice device_;
  Program program_;      // without the weights: those live on the device
  float largest_input_;  // beyond it, see bounds.h, a row is refused
  Precision precision_;
  Layout layout_;
  std::vector<std::int64_t> blocks_;
  std::size_t dropped_sizes_;  // larger than these; kernels count them in
  std::vector<DeviceBuffer> slots_;
  DeviceBuffer sums_, workspace_, flags_;
  std::vector<LinearStep> linears_;  // by step; empty where the step is not linear
  std::vector<OwnedGraph> graphs_;   // by block size
  std::mutex mutex_;
  OwnedEvent last_use_;  // of the buffers
};

// The size of the next block for `rows` remaining rows: the largest that is not half padding or more, else
// the smallest.
std::size_t choose_block(const std::vector<std::int64_t>& blocks, const std::vector<std::size_t>& sizes,
                         std::int64_t rows);

}  // namespace fct::cuda
