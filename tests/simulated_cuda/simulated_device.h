// A simulated device: what NVIDIA's runtime, driver and cuBLASLt do, on a CPU, so that csrc/cuda/nvidia runs
// unchanged where there is no device. It is strict. What is documented as an error is refused with the
// documented status; what is undefined on a device (an event of a freed stream, memory freed under a kernel)
// ends the process.
//
// Work is put off: whatever takes a stream is run when somebody waits for it, a random one of the operations
// that may run next, so that order comes from streams and events and from nothing else. FCT_SIMULATED_SEED
// chooses.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace simulated {

// For whatever a program must never do. Says so and ends the process.
[[noreturn]] void violation(const std::string& what);

// An environment variable's number.
std::uint64_t setting(const char* name, std::uint64_t otherwise);

// Every call holds it.
std::recursive_mutex& mutex();

// Work of a stream up to here; empty if there is none.
struct Point {
  std::shared_ptr<struct Queue> queue;
  std::uint64_t count = 0;
  bool is_reached() const;
};

struct Operation {
  std::function<void()> work;
  std::vector<const void*> touched;  // addresses in memory that must live until it has run
  std::vector<Point> after;
};

struct Capture {
  std::vector<Operation> operations;
  cudaStreamCaptureMode mode;
  bool is_valid = true;
};

struct Queue {
  CUcontext context;
  bool is_blocking;  // takes turns with the default stream
  std::deque<Operation> operations{};
  std::uint64_t pushed = 0, completed = 0;
  std::unique_ptr<Capture> capture{};

  Point end(const std::shared_ptr<Queue>& self) const { return {self, pushed}; }
};

}  // namespace simulated

// What handles point to.
struct CUctx_st {
  int device;
  int retained = 0;  // by how many; it exists if by any
  cudaError_t fault = cudaSuccess;
  std::shared_ptr<simulated::Queue> default_stream{};
};
struct CUstream_st {
  std::shared_ptr<simulated::Queue> queue;
};
struct CUevent_st {
  CUcontext context;
  simulated::Point point{};
};
struct CUgraph_st {
  std::vector<simulated::Operation> operations;
};
struct CUgraphExec_st {
  CUcontext context;
  std::vector<simulated::Operation> operations;
  simulated::Point last{};  // a graph never runs at the same time as itself
};

namespace simulated {

// --- devices.cpp: devices and contexts ---

int device_count();
std::uint64_t device_memory();
int compute_capability();  // 90 is 9.0
CUcontext primary_context(int device);

// The calling thread's contexts; null if it has none.
CUcontext current();
void set_current(CUcontext context);  // in the place of the current one
void push_current(CUcontext context);
bool pop_current();  // false if there is none

// --- queue.cpp: streams ---

std::shared_ptr<Queue> make_queue(CUcontext context, bool is_blocking);
void push(const std::shared_ptr<Queue>& queue, Operation operation);
void run_until(const Point& point);
// Of all operations that have not run, whether one touches this memory.
bool is_used(const void* first, std::size_t bytes);
// Whether a stream that the default stream would wait for is being captured.
bool is_blocking_capture(CUcontext context);

// --- memory.cpp ---

// Device memory lies between pages that nobody may touch, full of NaN at first. With FCT_SIMULATED_PROTECT=1
// the host cannot touch it at all: it is open only while operations run.
void* allocate_device(int device, std::size_t bytes);  // null if there is none left
bool free_device(void* memory);                        // false if it is no allocation
std::uint64_t used_memory(int device);
// The device whose live allocation all of this lies in, -1 if there is none.
int device_of(const void* first, std::size_t bytes);

void* allocate_pinned(std::size_t bytes);
bool free_pinned(void* memory);
bool is_pinned(const void* first, std::size_t bytes);

// While it lives, device memory can be touched.
class Opened {
 public:
  Opened();
  ~Opened();
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
};

// --- launch.cpp: kernels ---

struct Launch {
  cudaLaunchConfig_t config;
  std::function<void()> body;  // what each thread does
  std::size_t parameter_bytes;
  std::vector<const void*> words;  // of the parameters: those that are addresses of memory are touched
};
cudaError_t launch(Launch launch);
void run_blocks(const cudaLaunchConfig_t& config, const std::function<void()>& body);

// --- runtime.cpp ---

// The stream behind a handle in the current context; null if there is none.
std::shared_ptr<Queue> find_queue(cudaStream_t stream);

}  // namespace simulated
