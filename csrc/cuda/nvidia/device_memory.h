#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "check.h"

namespace fct::cuda {

// Memory on the current device.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::size_t bytes) { FCT_CHECK(cudaMalloc(&data_, bytes)); }
  DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~DeviceMemory() { (void)cudaFree(data_); }
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

}  // namespace fct::cuda
