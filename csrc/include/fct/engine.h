// The device seam: an Engine compiles a Program for its device, an Executable runs it on rows.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fct/dtype.h"
#include "fct/program.h"

namespace fct {

// Rows in host memory, C-contiguous: (rows, width).
struct InputRows {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
};

struct OutputRows {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

// A run on its way. `wait` returns once the output is complete, or throws what Executable::run throws; it is
// called once. Until it has returned, or the object is gone, the run's rows must stay where they are.
class PendingRun {
 public:
  virtual ~PendingRun() = default;
  virtual void wait() = 0;
};

using HostMemory = std::shared_ptr<char[]>;
using DeviceAllocation = std::shared_ptr<void>;  // owns an address of the device

// Rows in device memory that receive a run's results too: the values of its output, as float32, L2-normalised
// if asked.
struct KeptRows {
  float* data = nullptr;  // null: nothing is kept
  bool normalize = false;
};

class Executable {
 public:
  virtual ~Executable() = default;

  // Transforms `rows` rows. `side.data` is null exactly if the program has one input. Safe to call from many
  // threads at once. The result depends on nothing but the row itself (Note [Same bytes],
  // cpu_executable.cpp). Throws NonFiniteRow for the first row, in input order, whose input or result is not
  // finite; the output is then unspecified.
  virtual void run(InputRows old, InputRows side, OutputRows out, std::int64_t rows, int threads) const = 0;

  // Starts a run and may return before it has ended, so that the next one can be prepared meanwhile; here it
  // has ended. Where `runs_in_flight` runs overlap, more in flight gain nothing. `kept` is complete when the
  // output is; its memory is that of allocate_device().
  virtual std::unique_ptr<PendingRun> start(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                                            int threads, KeptRows kept) const;
  virtual int runs_in_flight() const { return 1; }

  // Memory that this executable reads and writes fastest. May outlive the executable.
  virtual HostMemory allocate_host(std::size_t bytes) const;
  // Memory of its device, for rows to be kept; null if there is no device, several, or not so much memory.
  // May outlive the executable.
  virtual DeviceAllocation allocate_device(std::size_t bytes) const;

  virtual int old_dim() const = 0;
  virtual int side_dim() const = 0;  // 0: the program has one input
  virtual int new_dim() const = 0;
  virtual Precision precision() const = 0;
  virtual std::string device() const { return "cpu"; }  // as it is named on the way in
  virtual std::string description() const = 0;          // kernels and tile sizes, for people
  // Device memory that it holds; of several devices, on each at most.
  virtual std::size_t device_bytes() const { return 0; }
};

// An executable that also takes rows in the memory of its device.
class DeviceExecutable : public Executable {
 public:
  // Enqueues the transformation of rows in device memory on `stream`, a stream of that device as an opaque
  // handle, and returns without waiting for it; nothing is copied. Calls from several threads and streams may
  // overlap; the device works on one at a time. Nobody is there to throw NonFiniteRow to: a row whose input
  // or result is not finite comes out as a row of NaN, and no other row is touched. Throws
  // Error(kUnsupported) while the stream is captured into a graph: a replay would not wait for other calls,
  // which use the same buffers.
  virtual void run_on_device(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                             void* stream) const = 0;
};

// The largest absolute value of each value that a linear layer reads, measured on typical rows.
using Ranges = std::map<ValueId, float>;

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::vector<Precision> precisions() const = 0;  // native ones, slowest first
  // Precisions that need ranges scale each value by its own; others do not look at them.
  virtual std::unique_ptr<Executable> compile(const Program& program, Precision precision,
                                              const Ranges& ranges = {}) const = 0;
};

std::unique_ptr<Engine> make_cpu_engine();
std::string cpu_instruction_set();  // what that engine's products are computed with, AVX2 for instance
int cpu_int8_weight_bits();  // of int8's weights there: 8; 7 where sums of larger ones saturate; 0: no int8

// Another runtime behind the same seam: computes float32 rows; `side` is null if there is one input. Must be
// safe to call from many threads at once.
using RowFunction = std::function<void(const float* old, const float* side, float* out, std::int64_t rows)>;

struct RowFunctionTraits {
  int old_dim = 0;
  int side_dim = 0;
  int new_dim = 0;
  bool normalize = false;  // L2-normalise what the function returns
  std::string description;
};

// Puts the casts and checks of an Executable around a function; calls it with at most 65,536 rows.
std::unique_ptr<Executable> make_function_executable(RowFunction function, RowFunctionTraits traits);

}  // namespace fct
