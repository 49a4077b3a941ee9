// NVIDIA devices. Always there to be asked; what is missing (a build with CUDA, a driver, a library, a
// device) is found out on first use.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fct/engine.h"

namespace fct {

struct CudaOptions {
  std::vector<int> devices{0};    // several: each call's rows are shared out among them
  std::size_t device_memory = 0;  // bytes on each device; 0: most of what is free
};

// Throws Error(kUnsupported) that says what is missing.
std::unique_ptr<Engine> make_cuda_engine(const CudaOptions& options);

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
