// NVIDIA devices. Always there to be asked; what is missing (a build with CUDA, a driver, a library, a
// device) is found out on first use.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fct/assign.h"
#include "fct/engine.h"

namespace fct {

struct CudaOptions {
  std::vector<int> devices{0};    // several: each call's rows are shared out among them
  std::size_t device_memory = 0;  // bytes on each device; 0: most of what is free
};

// Throws Error(kUnsupported) that says what is missing.
std::unique_ptr<Engine> make_cuda_engine(const CudaOptions& options);

// An assigner that works on a device. Its calls take turns there.
class DeviceAssigner : public Assigner {
 public:
  // As assign, of rows in the memory of its device: lists and codes are all that is copied to the host. The
  // rows are read after what was enqueued on `stream` before the call, and before it returns.
  virtual void assign_on_device(const float* rows, std::int64_t count, std::int64_t* lists,
                                std::uint8_t* codes) const = 0;
  virtual void* stream() const = 0;
  virtual std::string device() const = 0;
  virtual std::size_t device_bytes() const = 0;  // that it holds
  virtual std::string description() const = 0;   // kernels and block sizes, for people
};

// What make_assigner makes, on devices: lists and codes are the same, up to lists that float32 cannot tell
// apart. Several devices share each call's rows, and then none takes rows that lie on it. Throws as
// make_assigner and make_cuda_engine do, and Error(kDeviceMemory) where a device has too little.
std::unique_ptr<Assigner> make_cuda_assigner(std::optional<Centroids> centroids,
                                             std::optional<Codebooks> codebooks, const CudaOptions& options);

struct CudaDeviceInfo {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  std::size_t memory_bytes = 0;
  std::optional<std::size_t>
      free_bytes{};  // known where this process uses the device: asking takes memory there
};

struct CudaStatus {
  bool built = false;   // the CUDA part lies beside the core
  std::string missing;  // why no device can be used; empty if one can
  std::vector<CudaDeviceInfo> devices;
  std::string driver, cublaslt;  // versions; empty if unknown
};

CudaStatus cuda_status() noexcept;

}  // namespace fct
