// What a device hands out, owned: freed when the owner goes. Whoever enqueued work that touches it has waited
// for that work before.
#pragma once

#include <memory>
#include <utility>

#include "device.h"

namespace fct::cuda {

using SharedDevice = std::shared_ptr<Device>;

// One kind of handle; `kFree` gives it back to the device.
template <void (Device::*kFree)(void*) noexcept>
class Owned {
 public:
  Owned() = default;
  Owned(SharedDevice device, void* handle) : device_(std::move(device)), handle_(handle) {}
  Owned(Owned&& other) noexcept
      : device_(std::move(other.device_)), handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != nullptr) (device_.get()->*kFree)(handle_);
  }

  void* get() const { return handle_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(handle_);
  }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  SharedDevice device_;
  void* handle_ = nullptr;
};

using DeviceBuffer = Owned<&Device::release>;
using PinnedBuffer = Owned<&Device::release_pinned>;
using OwnedStream = Owned<&Device::destroy_stream>;
using OwnedEvent = Owned<&Device::destroy_event>;
using OwnedGraph = Owned<&Device::destroy_graph>;

inline DeviceBuffer device_buffer(const SharedDevice& device, std::size_t bytes) {
  return bytes == 0 ? DeviceBuffer() : DeviceBuffer(device, device->allocate(bytes));
}
inline PinnedBuffer pinned_buffer(const SharedDevice& device, std::size_t bytes) {
  return bytes == 0 ? PinnedBuffer() : PinnedBuffer(device, device->allocate_pinned(bytes));
}
inline OwnedStream make_stream(const SharedDevice& device) { return {device, device->create_stream()}; }
inline OwnedEvent make_event(const SharedDevice& device) { return {device, device->create_event()}; }

// Waits for all work on a stream, so that what it touches can be freed. An error says that the device is
// lost, and with it the work.
inline void drain(Device& device, Stream stream) noexcept {
  try {
    device.synchronize_stream(stream);
  } catch (const std::exception&) {
  }
}

class DrainOnExit {
 public:
  DrainOnExit(Device& device, Stream stream) : device_(device), stream_(stream) {}
  ~DrainOnExit() { drain(device_, stream_); }
  DrainOnExit(const DrainOnExit&) = delete;
  DrainOnExit& operator=(const DrainOnExit&) = delete;

 private:
  Device& device_;
  Stream stream_;
};

}  // namespace fct::cuda
