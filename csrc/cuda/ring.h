// Rows in host memory through one device: stretches of them go round a ring of lanes, so that one is copied
// in, one computed and one copied out at the same time, in bounded memory.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "copy_pool.h"
#include "device_program.h"

namespace fct::cuda {

// The arguments of one run and what has been found out about it. Guarded by the ring.
struct Job {
  InputRows old, side;
  OutputRows out;
  KeptRows kept;
  std::int64_t rows = 0;
  int threads = 1;
  int lanes = 0;  // that still work for it
  std::int64_t bad_row = kNoBadRow;
  const char* bad_array = nullptr;
  std::exception_ptr error{};
};

class Ring {
 public:
  // `rows`: of a lane, one block or several. Throws OutOfDeviceMemory if the lanes do not fit.
  Ring(SharedDevice device, std::shared_ptr<DeviceProgram> program, std::int64_t rows, int old_dim,
       int side_dim, int new_dim);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Enqueues the job's rows in blocks of the sizes whose indices are given, largest first. Waits for other
  // rows where it needs their lanes.
  void start(Job& job, const std::vector<std::size_t>& sizes);
  // Returns when no lane works for the job any more; throws its error.
  void finish(Job& job);

  std::int64_t rows() const { return rows_; }  // of a lane

  // Device memory it takes for each row of a lane.
  static std::size_t bytes_per_row(int old_dim, int side_dim, int new_dim);

 private:
  static constexpr std::size_t kLanes = 4;  // in, compute, out, and one that the host prepares

  // Device rows of one of the arrays, and the pinned memory that stands in for memory that is not.
  struct Channel {
    DeviceBuffer device;
    PinnedBuffer staging;  // made when first needed, of the size that is needed
    std::size_t staging_bytes = 0;
    int dim = 0;
  };
  struct Lane {
    Channel old, side, out;
    DeviceBuffer first_bad;  // by block
    PinnedBuffer first_bad_host;
    OwnedEvent copied_in, computed, copied_out;
    Job* job = nullptr;                    // null: idle
    std::int64_t first_row = 0, rows = 0;  // of the job
    std::vector<std::int64_t> blocks{};    // their first rows, in the lane
    bool out_is_staged = false;
  };

  std::size_t counter_bytes() const;
  void start_lane(Job& job, std::int64_t first_row, const std::vector<std::size_t>& sizes);
  BlockRows copy_in(const Job& job, Lane& lane);
  void keep(const Job& job, const Lane& lane);
  void copy_out(const Job& job, Lane& lane);
  void* staging_for(Channel& channel, std::size_t bytes);
  void retire(Lane& lane);
  void fail(std::exception_ptr error);
  void drain_streams() noexcept;

  SharedDevice device_;
  std::shared_ptr<DeviceProgram> program_;
  std::int64_t rows_;
  CopyPool pool_;
  OwnedStream in_, compute_, out_;
  std::array<Lane, kLanes> lanes_;
  std::size_t next_lane_ = 0;  // the oldest, where all are busy
  std::mutex mutex_;
};

}  // namespace fct::cuda
