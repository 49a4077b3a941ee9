// Centroids and codebooks on a device, and what computes with one block of rows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device_handles.h"
#include "list_scores.h"

namespace fct::cuda {

// What rows are assigned to, on the host. At least one of the two is there.
struct Assignment {
  const std::optional<Centroids>& centroids;
  const std::optional<Codebooks>& codebooks;

  std::int64_t dim() const {
    return centroids ? centroids->dim : std::int64_t{codebooks->parts} * codebooks->part_dim;
  }
  std::int64_t parts() const { return codebooks ? codebooks->parts : 0; }
};

class AssignProgram {
 public:
  // `blocks`: rows of a block, largest first; `scores`: of the centroids, if there are any. Throws
  // OutOfDeviceMemory if it does not fit.
  AssignProgram(SharedDevice device, const Assignment& assignment, const std::optional<ListScores>& scores,
                std::vector<std::int64_t> blocks);

  // Enqueues at most blocks().front() rows. All calls use the same buffers: they have to follow each other on
  // the device.
  void enqueue(const AssignedRows& rows, Stream stream) const;

  const std::vector<std::int64_t>& blocks() const { return blocks_; }
  std::string kernels() const;

  // Device memory it takes: for any block, and for each row of the largest one.
  static std::size_t fixed_bytes(const Assignment& assignment);
  static std::size_t bytes_per_row(const Assignment& assignment);

 private:
  const float* upload(const std::vector<float>& values);
  void place_centroids(const Centroids& centroids, const ListScores& scores);
  void place_codebooks(const Codebooks& codebooks);

  struct Chunk {
    std::int64_t first_list, lists;
    Matrix scores;
    std::unique_ptr<PreparedLinear> layer;
  };

  SharedDevice device_;
  std::vector<std::int64_t> blocks_;
  DeviceCentroids centroids_;
  DeviceCodebooks codebooks_;
  bool by_residual_ = false;
  std::vector<DeviceBuffer> constants_;
  DeviceBuffer shifted_, scores_, searches_, workspace_;
  std::vector<Chunk> chunks_;
};

}  // namespace fct::cuda
