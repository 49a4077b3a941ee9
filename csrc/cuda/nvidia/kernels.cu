// One warp works on one row, so that a row's result depends on nothing but the row. A lane works on chunks of
// neighbouring elements, which it reads and writes in pieces of up to 16 bytes where the rows lie so that it
// can; the element type is switched on once per chunk, and is the same for all threads.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "kernels.h"
#include "warps.h"

namespace fct::cuda::kernels {
namespace {

constexpr int kChunk = 8;              // elements
constexpr int kStep = kWarp * kChunk;  // elements that a warp holds with one chunk a lane
constexpr int kHeldChunks = 4;         // what a lane keeps in registers
constexpr std::int64_t kHeldColumns = kHeldChunks * kStep;  // of rows that are read once

constexpr std::size_t piece_of(std::size_t element) { return std::min<std::size_t>(16, kChunk * element); }

template <typename T>
struct alignas(piece_of(sizeof(T))) Packed {
  T values[kChunk];
};

using Chunk = Packed<float>;

// False for NaN as well.
__device__ bool is_within(const Chunk& chunk, float largest) {
  bool within = true;
  for (float value : chunk.values) within &= fabsf(value) <= largest;
  return within;
}

__device__ bool is_finite(const Chunk& chunk) {
  bool finite = true;
  for (float value : chunk.values) finite &= isfinite(value);
  return finite;
}

// Calls `body` with a value of the type that stores elements of `dtype`.
template <typename Body>
__device__ void with_type(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32) return body(float{});
  if (dtype == DType::kFloat16) return body(__half{});
  if (dtype == DType::kBFloat16) return body(__nv_bfloat16{});
  if (dtype == DType::kTf32) return body(Tf32{});
  body(__nv_fp8_e4m3{});
}

// A matrix as kernels see it. `factor` takes stored elements to values or back; it is exact, a power of two.
struct Rows {
  void* data;
  DType dtype;
  std::int64_t stride;
  float factor;
  bool is_aligned;  // every chunk is

  Rows(const Matrix& matrix, float scale)
      : data(matrix.data), dtype(matrix.dtype), stride(matrix.stride), factor(scale) {
    const std::size_t piece = piece_of(size_of(dtype));
    is_aligned = reinterpret_cast<std::uintptr_t>(data) % piece == 0 &&
                 static_cast<std::size_t>(stride) * size_of(dtype) % piece == 0;
  }
};

struct Reader : Rows {
  explicit Reader(const Matrix& matrix) : Rows(matrix, 1 / matrix.scale) {}

  // Elements from `columns` on count as zeros.
  __device__ Chunk read(std::int64_t row, std::int64_t column, std::int64_t columns) const {
    Chunk chunk;
    with_type(dtype, [&](auto type) {
      using T = decltype(type);
      const T* from = static_cast<const T*>(data) + row * stride + column;
      if (is_aligned && column + kChunk <= columns) {
        const auto packed = *reinterpret_cast<const Packed<T>*>(from);
        for (int k = 0; k < kChunk; ++k) chunk.values[k] = static_cast<float>(packed.values[k]) * factor;
      } else {
        for (int k = 0; k < kChunk; ++k)
          chunk.values[k] = column + k < columns ? static_cast<float>(from[k]) * factor : 0.f;
      }
    });
    return chunk;
  }
};

struct Writer : Rows {
  explicit Writer(const Matrix& matrix) : Rows(matrix, matrix.scale) {}

  // Rounds to nearest; float8 saturates, NaN stays NaN. Zeros from extent.columns up to extent.padded.
  __device__ void write(std::int64_t row, std::int64_t column, Chunk chunk, Extent extent) const {
    if (column + kChunk > extent.columns)
      for (int k = 0; k < kChunk; ++k)
        if (column + k >= extent.columns) chunk.values[k] = 0.f;
    with_type(dtype, [&](auto type) {
      using T = decltype(type);
      T* to = static_cast<T*>(data) + row * stride + column;
      if (is_aligned && column + kChunk <= extent.padded) {
        Packed<T> packed;
        for (int k = 0; k < kChunk; ++k) packed.values[k] = static_cast<T>(chunk.values[k] * factor);
        *reinterpret_cast<Packed<T>*>(to) = packed;
      } else {
        for (int k = 0; k < kChunk; ++k)
          if (column + k < extent.padded) to[k] = static_cast<T>(chunk.values[k] * factor);
      }
    });
  }
  // Of what the values would be read back as; infinity saturates in float8, but is none the less bad.
  __device__ bool stays_finite(Chunk chunk) const {
    if (dtype != DType::kFloat8)
      with_type(dtype, [&](auto type) {
        for (float& value : chunk.values) value = static_cast<float>(static_cast<decltype(type)>(value));
      });
    return is_finite(chunk);
  }
};

__device__ float activated(float value, Activation activation) {
  if (activation == Activation::kRelu) return value < 0 ? 0.f : value;  // NaN stays NaN
  if (activation == Activation::kGelu) return 0.5f * value * (1.f + erff(value * 0.70710678f));
  return value;
}

// Calls body(column) for the first column of each chunk of this lane.
template <typename Body>
__device__ void for_each_chunk(std::int64_t columns, const Body& body) {
  for (std::int64_t column = lane() * kChunk; column < columns; column += kStep) body(column);
}

// A lane's chunks of a row that is gone through twice: kept, or read anew where they are too many.
template <bool kIsHeld>
class TwiceReadRow {
 public:
  __device__ TwiceReadRow(const Reader& from, std::int64_t row, std::int64_t columns)
      : from_(from), row_(row), columns_(columns) {
    if constexpr (kIsHeld) {
#pragma unroll
      for (int i = 0; i < kHeldChunks; ++i) held_[i] = from.read(row, column_of(i), columns);
    }
  }
  // Calls body(chunk, column) for each chunk of this lane that begins before `end`.
  template <typename Body>
  __device__ void for_each(std::int64_t end, const Body& body) const {
    if constexpr (kIsHeld) {
#pragma unroll
      for (int i = 0; i < kHeldChunks; ++i)
        if (column_of(i) < end) body(held_[i], column_of(i));
    } else {
      for_each_chunk(end, [&](std::int64_t column) { body(from_.read(row_, column, columns_), column); });
    }
  }

 private:
  __device__ static std::int64_t column_of(int i) { return i * kStep + lane() * kChunk; }

  const Reader& from_;
  std::int64_t row_, columns_;
  Chunk held_[kIsHeld ? kHeldChunks : 1];
};

__global__ void load_kernel(Reader from, Writer to, Extent extent, std::int64_t block_rows,
                            RowChecks checks) {
  for_each_row(block_rows, [&](std::int64_t row) {
    const std::int64_t columns = row < extent.rows ? extent.columns : 0;  // what pads the block is zero
    bool finite = true, stays_finite = true;
    for_each_chunk(extent.padded, [&](std::int64_t column) {
      const Chunk chunk = from.read(row, column, columns);
      finite &= is_finite(chunk);
      stays_finite &= to.stays_finite(chunk) && is_within(chunk, checks.largest);
      to.write(row, column, chunk, extent);
    });
    finite = __all_sync(kAllLanes, finite);
    stays_finite = __all_sync(kAllLanes, stays_finite);
    if (lane() != 0) return;
    if (!stays_finite) checks.flags[row] = 1;
    if (!finite) note_bad_row(checks.first_bad, row);
  });
}

// The target is the caller's: it has no padding.
template <bool kIsHeld>
__global__ void store_kernel(Reader from, Writer to, Extent extent, RowChecks checks) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    const TwiceReadRow<kIsHeld> values(from, row, extent.columns);
    bool finite = checks.flags[row] == 0;
    values.for_each(extent.columns,
                    [&](const Chunk& chunk, std::int64_t) { finite &= to.stays_finite(chunk); });
    finite = __all_sync(kAllLanes, finite);
    values.for_each(extent.columns, [&](Chunk chunk, std::int64_t column) {
      for (float& value : chunk.values) value = finite ? value : nanf("");
      to.write(row, column, chunk, {extent.rows, extent.columns, extent.columns});
    });
    if (!finite && lane() == 0) note_bad_row(checks.first_bad, row);
  });
}

__global__ void convert_kernel(Reader from, Writer to, Extent extent, Activation activation) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    for_each_chunk(extent.padded, [&](std::int64_t column) {
      Chunk chunk = from.read(row, column, extent.columns);
      for (float& value : chunk.values) value = activated(value, activation);
      to.write(row, column, chunk, extent);
    });
  });
}

__global__ void flag_kernel(Reader from, Extent extent, std::uint8_t* flags) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    bool finite = true;
    for_each_chunk(extent.columns,
                   [&](std::int64_t column) { finite &= is_finite(from.read(row, column, extent.columns)); });
    finite = __all_sync(kAllLanes, finite);
    if (!finite && lane() == 0) flags[row] = 1;
  });
}

__global__ void add_kernel(Reader left, Reader right, Writer to, Extent extent) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    for_each_chunk(extent.padded, [&](std::int64_t column) {
      Chunk sum = left.read(row, column, extent.columns);
      const Chunk other = right.read(row, column, extent.columns);
      for (int k = 0; k < kChunk; ++k) sum.values[k] += other.values[k];
      to.write(row, column, sum, extent);
    });
  });
}

template <bool kIsHeld>
__global__ void normalize_kernel(Reader from, Writer to, Extent extent) {
  for_each_row(extent.rows, [&](std::int64_t row) {
    const TwiceReadRow<kIsHeld> values(from, row, extent.columns);
    double sum = 0;
    values.for_each(extent.columns, [&](const Chunk& chunk, std::int64_t) {
      for (float value : chunk.values) sum += static_cast<double>(value) * value;
    });
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    const double norm = sqrt(sum), divisor = norm < 1e-12 ? 1e-12 : norm;  // NaN stays NaN
    values.for_each(extent.padded, [&](Chunk chunk, std::int64_t column) {
      for (float& value : chunk.values) value = static_cast<float>(value / divisor);
      to.write(row, column, chunk, extent);
    });
  });
}

}  // namespace

cudaError_t load(const Matrix& from, const Matrix& to, Extent extent, std::int64_t block_rows,
                 RowChecks checks, cudaStream_t stream) {
  return launch(load_kernel, block_rows, stream, Reader(from), Writer(to), extent, block_rows, checks);
}

cudaError_t store(const Matrix& from, const Matrix& to, Extent extent, RowChecks checks,
                  cudaStream_t stream) {
  const auto kernel = extent.columns <= kHeldColumns ? store_kernel<true> : store_kernel<false>;
  return launch(kernel, extent.rows, stream, Reader(from), Writer(to), extent, checks);
}

cudaError_t convert(const Matrix& from, const Matrix& to, Extent extent, Activation activation,
                    cudaStream_t stream) {
  return launch(convert_kernel, extent.rows, stream, Reader(from), Writer(to), extent, activation);
}

cudaError_t flag(const Matrix& from, Extent extent, std::uint8_t* flags, cudaStream_t stream) {
  return launch(flag_kernel, extent.rows, stream, Reader(from), extent, flags);
}

cudaError_t add(const Matrix& left, const Matrix& right, const Matrix& to, Extent extent,
                cudaStream_t stream) {
  return launch(add_kernel, extent.rows, stream, Reader(left), Reader(right), Writer(to), extent);
}

cudaError_t normalize(const Matrix& from, const Matrix& to, Extent extent, cudaStream_t stream) {
  const auto kernel = extent.padded <= kHeldColumns ? normalize_kernel<true> : normalize_kernel<false>;
  return launch(kernel, extent.rows, stream, Reader(from), Writer(to), extent);
}

}  // namespace fct::cuda::kernels
