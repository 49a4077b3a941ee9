// One warp works on one row, so that a row's result depends on nothing but the row. The element type is
// switched on within a kernel: it is the same for all threads, and the rows' way through memory is what takes
// the time.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "kernels.h"

namespace fct::cuda::kernels {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kMaxBlocks = 4096;
constexpr unsigned kAllLanes = 0xffffffffu;

// A matrix as kernels read it: division by the scale is exact, as it is a power of two.
struct Reader {
  const void* data;
  DType dtype;
  std::int64_t stride;
  float factor;

  explicit Reader(const Matrix& matrix)
      : data(matrix.data), dtype(matrix.dtype), stride(matrix.stride), factor(1 / matrix.scale) {}

  __device__ float at(std::int64_t row, std::int64_t column) const {
    const std::int64_t index = row * stride + column;
    switch (dtype) {
      case DType::kFloat32:
        return static_cast<const float*>(data)[index];
      case DType::kFloat16:
        return __half2float(static_cast<const __half*>(data)[index]);
      case DType::kBFloat16:
        return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
      default:
        return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(data)[index]) * factor;
    }
  }
};

struct Writer {
  void* data;
  DType dtype;
  std::int64_t stride;
  float factor;

  explicit Writer(const Matrix& matrix)
      : data(matrix.data), dtype(matrix.dtype), stride(matrix.stride), factor(matrix.scale) {}

  __device__ void set(std::int64_t row, std::int64_t column, float value) const {
    const std::int64_t index = row * stride + column;
    switch (dtype) {
      case DType::kFloat32:
        static_cast<float*>(data)[index] = value;
        break;
      case DType::kFloat16:
        static_cast<__half*>(data)[index] = __float2half_rn(value);
        break;
      case DType::kBFloat16:
        static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
        break;
      default:  // saturates; NaN stays NaN
        static_cast<__nv_fp8_e4m3*>(data)[index] = __nv_fp8_e4m3(value * factor);
    }
  }
  // What `value` would be read back as, finite or not.
  __device__ bool stays_finite(float value) const {
    return isfinite(dtype == DType::kFloat16 ? __half2float(__float2half_rn(value)) : value);
  }
};

__device__ float activated(float value, Activation activation) {
  if (activation == Activation::kRelu) return value < 0 ? 0.f : value;  // NaN stays NaN
  if (activation == Activation::kGelu) return 0.5f * value * (1.f + erff(value * 0.70710678f));
  return value;
}

__device__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

// Calls body(row) for each row, all lanes of a warp with the same one.
template <typename Body>
__device__ void for_each_row(std::int64_t rows, const Body& body) {
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarpsPerBlock;
  std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  for (; row < rows; row += warps) body(row);
}

__device__ void zero_padding(const Writer& to, std::int64_t row, Extent extent) {
  for (std::int64_t column = extent.columns + lane(); column < extent.padded; column += kWarp)
    to.set(row, column, 0.f);
}

__device__ void note_bad_row(std::int64_t* first_bad, std::int64_t row) {
  if (first_bad != nullptr)
    atomicMin(reinterpret_cast<unsigned long long*>(first_bad), static_cast<unsigned long long>(row));
}

__global__ void load_kernel(Reader from, Writer to, Extent extent, std::int64_t block_rows,
                            RowChecks checks) {
  for_each_row(block_rows, [&](std::int64_t row) {
    const bool is_padding = row >= extent.rows;
    bool is_finite = true, stays_finite = true;
    for (std::int64_t column = lane(); column < extent.columns; column += kWarp) {
      const float value = is_padding ? 0.f : from.at(row, column);
      is_finite = is_finite && isfinite(value);
      stays_finite = stays_finite && to.stays_finite(value);
      to.set(row, column, value);
    }
    zero_padding(to, row, extent);
    is_finite = __all_sync(kAllLanes, is_finite);
    stays_finite = __all_sync(kAllLanes, stays_finite);
    if (lane() != 0) return;
    if (!stays_finite) checks.flags[row] = 1;
    if (!is_finite) note_bad_row(checks.first_bad, row);
  });
}

__global__ void store_kernel(Reader from, Writer to, Extent extent, RowChecks checks) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    bool finite = checks.flags[row] == 0;
    for (std::int64_t column = lane(); column < extent.columns; column += kWarp)
      finite = finite && to.stays_finite(from.at(row, column));
    finite = __all_sync(kAllLanes, finite);
    for (std::int64_t column = lane(); column < extent.columns; column += kWarp)
      to.set(row, column, finite ? from.at(row, column) : nanf(""));
    if (!finite && lane() == 0) note_bad_row(checks.first_bad, row);
  });
}

__global__ void convert_kernel(Reader from, Writer to, Extent extent, Activation activation) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    for (std::int64_t column = lane(); column < extent.columns; column += kWarp)
      to.set(row, column, activated(from.at(row, column), activation));
    zero_padding(to, row, extent);
  });
}

__global__ void add_kernel(Reader left, Reader right, Writer to, Extent extent) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    for (std::int64_t column = lane(); column < extent.columns; column += kWarp)
      to.set(row, column, left.at(row, column) + right.at(row, column));
    zero_padding(to, row, extent);
  });
}

__global__ void normalize_kernel(Reader from, Writer to, Extent extent) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    double sum = 0;
    for (std::int64_t column = lane(); column < extent.columns; column += kWarp) {
      const double value = from.at(row, column);
      sum += value * value;
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    const double norm = sqrt(sum), divisor = norm < 1e-12 ? 1e-12 : norm;  // NaN stays NaN
    for (std::int64_t column = lane(); column < extent.columns; column += kWarp)
      to.set(row, column, static_cast<float>(from.at(row, column) / divisor));
    zero_padding(to, row, extent);
  });
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), std::int64_t rows, cudaStream_t stream,
                   Arguments... arguments) {
  const std::int64_t blocks = (rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
  const auto grid = static_cast<unsigned>(std::clamp<std::int64_t>(blocks, 1, kMaxBlocks));
  kernel<<<grid, kWarp * kWarpsPerBlock, 0, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace

cudaError_t load(const Matrix& from, const Matrix& to, Extent extent, std::int64_t block_rows,
                 RowChecks checks, cudaStream_t stream) {
  return launch(load_kernel, block_rows, stream, Reader(from), Writer(to), extent, block_rows, checks);
}

cudaError_t store(const Matrix& from, const Matrix& to, Extent extent, RowChecks checks,
                  cudaStream_t stream) {
  return launch(store_kernel, extent.rows, stream, Reader(from), Writer(to), extent, checks);
}

cudaError_t convert(const Matrix& from, const Matrix& to, Extent extent, Activation activation,
                    cudaStream_t stream) {
  return launch(convert_kernel, extent.rows, stream, Reader(from), Writer(to), extent, activation);
}

cudaError_t add(const Matrix& left, const Matrix& right, const Matrix& to, Extent extent,
                cudaStream_t stream) {
  return launch(add_kernel, extent.rows, stream, Reader(left), Reader(right), Writer(to), extent);
}

cudaError_t normalize(const Matrix& from, const Matrix& to, Extent extent, cudaStream_t stream) {
  return launch(normalize_kernel, extent.rows, stream, Reader(from), Writer(to), extent);
}

}  // namespace fct::cuda::kernels
