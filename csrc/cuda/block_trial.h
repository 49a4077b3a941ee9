// How a program fares on its device in blocks of each of its sizes, found out before rows of anybody go
// through.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "device_program.h"

namespace fct::cuda {

using Clock = std::function<double()>;  // seconds since some moment

double wall_clock();

class BlockTrial {
 public:
  // Takes device memory for one block's rows; throws OutOfDeviceMemory.
  BlockTrial(SharedDevice device, std::shared_ptr<DeviceProgram> program, int old_dim, int side_dim,
             int new_dim);

  // The sizes (indices, largest first) that give a row the bytes that the first of them gives it, wherever it
  // lies; none if no size does so in itself. Throws Error(kUnsupported) if all rows overflow on their way.
  std::vector<std::size_t> equal_sizes();

  // Rows a second in blocks of each size: the best of some rounds, as many rows of each size. Not before
  // equal_sizes(), whose rows they are. Takes about a tenth of a second at most.
  std::vector<double> speeds(const std::vector<std::size_t>& sizes, const Clock& clock);

 private:
  struct HostRows {
    std::vector<float> old, side;
  };

  std::optional<std::vector<std::size_t>> equal_sizes(float range);
  std::vector<float> results(std::size_t size, const HostRows& rows);
  double seconds(std::size_t size, std::int64_t rows, const Clock& clock);
  void enqueue(std::size_t size, std::int64_t first_row, std::int64_t rows);

  SharedDevice device_;
  std::shared_ptr<DeviceProgram> program_;
  int old_dim_, side_dim_, new_dim_;
  DeviceBuffer old_, side_, out_;  // (rows of the largest block, dim) float32
  OwnedStream stream_;
};

}  // namespace fct::cuda
