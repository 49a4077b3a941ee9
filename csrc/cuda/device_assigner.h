// Lists and codes by one device.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "assign_program.h"
#include "copy_pool.h"
#include "device_handles.h"
#include "fct/cuda.h"

namespace fct::cuda {

// See DeviceAssigner. Blocks of rows go round a few lanes, so that one is copied in, one computed and one
// copied out at the same time, in bounded memory.
class OneDeviceAssigner : public DeviceAssigner {
 public:
  // `device_memory`: bytes to stay within; 0: most of what is free. Throws OutOfDeviceMemory if that is not
  // enough for the smallest block.
  OneDeviceAssigner(SharedDevice device, const std::optional<Centroids>& centroids,
                    const std::optional<Codebooks>& codebooks, std::size_t device_memory);
  ~OneDeviceAssigner() override;

  void assign(const float* rows, std::int64_t count, int threads, std::int64_t* lists,
              std::uint8_t* codes) const override;
  void assign_on_device(const float* rows, std::int64_t count, std::int64_t* lists,
                        std::uint8_t* codes) const override;
  int dim() const override { return dim_; }
  int parts() const override { return parts_; }
  bool has_centroids() const override { return has_centroids_; }
  void* stream() const override { return compute_.get(); }
  std::string device() const override { return device_->label(); }
  std::size_t device_bytes() const override { return device_bytes_; }
  std::string description() const override;

  // Device memory that blocks of so many rows take.
  static std::size_t bytes_for(const Assignment& assignment, std::int64_t rows);

 private:
  static constexpr std::size_t kLanes = 3;  // in, compute and out; the host copies meanwhile

  struct Lane {
    DeviceBuffer rows, lists, codes, first_bad;
    PinnedBuffer rows_host, lists_host, codes_host, first_bad_host;
    OwnedEvent copied_in, computed, copied_out;
    std::int64_t first_row = 0, count = 0;  // of the call; none: idle
  };
  // The arguments of one call; rows are on the host, unless `is_on_device`.
  struct Call {
    const float* rows;
    std::int64_t count;
    int threads;
    std::int64_t* lists;
    std::uint8_t* codes;
    bool is_on_device;
    std::int64_t bad_row = kNoBadRow;
  };

  void build(const Assignment& assignment, std::size_t limit);
  void make_lanes(std::int64_t rows);
  void run(Call& call) const;
  void start(const Call& call, std::int64_t first_row, Lane& lane) const;
  const float* copy_in(const Call& call, Lane& lane) const;
  void copy_out(Lane& lane) const;
  void retire(Call& call, Lane& lane) const;
  std::size_t values(std::int64_t rows) const;

  SharedDevice device_;
  int dim_, parts_;
  bool has_centroids_;
  std::size_t device_bytes_ = 0;
  std::string shrunk_;
  std::unique_ptr<AssignProgram> program_;
  OwnedStream in_, compute_, out_;
  mutable std::array<Lane, kLanes> lanes_;
  mutable CopyPool pool_;
  mutable std::mutex mutex_;  // of a call, from its first row to its last
};

// Several devices, each with a stretch of a call's rows.
class MultiAssigner : public Assigner {
 public:
  explicit MultiAssigner(std::vector<std::unique_ptr<Assigner>> assigners)
      : assigners_(std::move(assigners)) {}

  void assign(const float* rows, std::int64_t count, int threads, std::int64_t* lists,
              std::uint8_t* codes) const override;
  int dim() const override { return assigners_.front()->dim(); }
  int parts() const override { return assigners_.front()->parts(); }
  bool has_centroids() const override { return assigners_.front()->has_centroids(); }

 private:
  std::vector<std::unique_ptr<Assigner>> assigners_;
};

// Throws Error(kUnsupported) if a device is too old.
std::unique_ptr<Assigner> make_device_assigner(std::vector<SharedDevice> devices,
                                               const std::optional<Centroids>& centroids,
                                               const std::optional<Codebooks>& codebooks,
                                               std::size_t device_memory);

}  // namespace fct::cuda
