// What nvcc gives to every .cu file without being asked, for g++: included before kernels.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "simulated_device.h"

using std::isfinite;

// Of the thread that runs; there is only ever one at a time.
extern uint3 threadIdx, blockIdx;
extern dim3 gridDim;

namespace simulated {

// Waits for all lanes of the warp; then returns what lane `from` gave. `kind` must be the same for all of
// them.
std::uint64_t exchange(unsigned mask, int kind, std::uint64_t value, int from);
// The same; returns whether all gave something else than 0.
bool all(unsigned mask, bool value);
int lane();

}  // namespace simulated

inline int __all_sync(unsigned mask, int predicate) { return simulated::all(mask, predicate != 0); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  static_assert(std::is_arithmetic_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = simulated::exchange(mask, distance, bits, simulated::lane() ^ distance);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
  const unsigned long long before = *address;
  if (value < before) *address = value;
  return before;
}

// As in cuda_runtime.h.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "parameters are copied to a device as bytes");
  return [&](Parameters... parameters) {
    simulated::Launch launch{.config = *config,
                             .body = [=] { kernel(parameters...); },
                             .parameter_bytes = (sizeof(Parameters) + ...),
                             .words = {}};
    auto add_words = [&](auto& parameter) {
      __builtin_clear_padding(&parameter);  // which may look like an address
      for (std::size_t at = 0; at + sizeof(void*) <= sizeof parameter; at += sizeof(void*)) {
        const void* word = nullptr;
        std::memcpy(&word, reinterpret_cast<const char*>(&parameter) + at, sizeof word);
        launch.words.push_back(word);
      }
    };
    (add_words(parameters), ...);
    return simulated::launch(std::move(launch));
  }(std::forward<Arguments>(arguments)...);
}
