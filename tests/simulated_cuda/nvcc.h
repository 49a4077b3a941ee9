// What nvcc gives to every .cu file without being asked, for g++: included before kernels.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "simulated_device.h"

using std::isfinite;

// Dynamic shared memory; one block runs at a time.
extern float fct_shared[];

// Of the thread that runs; there is only ever one at a time.
extern uint3 threadIdx, blockIdx;
extern dim3 gridDim;

namespace simulated {

// Waits for all lanes of the warp; then returns what lane `from` gave. `kind` must be the same for all of
// them.
std::uint64_t exchange(unsigned mask, int kind, std::uint64_t value, int from);
// The same; returns a bit for each lane that gave true.
unsigned ballot(unsigned mask, bool value);
// Waits for all threads of the block.
void wait_for_block();
int lane();

constexpr int kShuffle = 1 << 8;  // the kind of a shuffle from lane 0; kinds below it are distances

}  // namespace simulated

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simulated::ballot(mask, predicate != 0);
}
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline void __syncthreads() { simulated::wait_for_block(); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

namespace simulated {

template <typename T>
T shuffled(unsigned mask, T value, int kind, int from) {
  static_assert(std::is_arithmetic_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, kind, bits, from);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace simulated

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return simulated::shuffled(mask, value, distance, simulated::lane() ^ distance);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  return simulated::shuffled(mask, value, simulated::kShuffle + from, from);
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
