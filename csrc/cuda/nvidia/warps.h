// What all kernels share: one warp works on one row, so that a row's result depends on nothing but the row.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace fct::cuda::kernels {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kMaxBlocks = 4096;
constexpr unsigned kAllLanes = 0xffffffffu;

// Rounded to nearest, ties to even. What tensor cores do with the bits that they drop is not laid down.
struct Tf32 {
  float value;

  Tf32() = default;
  __device__ explicit Tf32(float exact) : value(exact) {
    if (!isfinite(exact)) return;
    std::uint32_t bits;
    memcpy(&bits, &exact, sizeof bits);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    memcpy(&value, &bits, sizeof value);
  }
  __device__ explicit operator float() const { return value; }
};

__device__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

// Calls body(row) for each row, all lanes of a warp with the same one.
template <typename Body>
__device__ void for_each_row(std::int64_t rows, const Body& body) {
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarpsPerBlock;
  std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  for (; row < rows; row += warps) body(row);
}

__device__ void note_bad_row(std::int64_t* first_bad, std::int64_t row) {
  if (first_bad != nullptr)
    atomicMin(reinterpret_cast<unsigned long long*>(first_bad), static_cast<unsigned long long>(row));
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_blocks(void (*kernel)(Parameters...), std::int64_t blocks, std::size_t shared_bytes,
                          cudaStream_t stream, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kWarp * kWarpsPerBlock);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// A warp for each row, or for several.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), std::int64_t rows, cudaStream_t stream,
                   Arguments... arguments) {
  const std::int64_t blocks = (rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return launch_blocks(kernel, std::clamp<std::int64_t>(blocks, 1, kMaxBlocks), 0, stream, arguments...);
}

}  // namespace
}  // namespace fct::cuda::kernels
