// Lists and codes of rows. Distances are summed in the order in which the CPU sums them
// (assign/distances.cpp, assign/nearest_entry.cpp), with the product and the sum rounded once: the same bits
// there and here.
#include <cuda_runtime_api.h>

#include <cmath>

#include "kernels.h"
#include "warps.h"

// Of the block; how much of it there is, the launch says.
extern __shared__ __align__(16) float fct_shared[];

namespace fct::cuda::kernels {
namespace {

constexpr int kSums = 16;                  // partial ones of a distance, as on the CPU
constexpr int kVector = 4;                 // scores read at once
constexpr float kLengthRounding = 1.001f;  // lengths are never too short

// --- rows less the mean ---

__global__ void shift_kernel(AssignedRows rows, DeviceCentroids centroids, std::int64_t dim, float* to,
                             std::int64_t padded, std::int64_t block_rows, ListSearch* searches) {
  const bool has_lists = centroids.values != nullptr;
  for_each_row(has_lists ? block_rows : rows.count, [&](std::int64_t row) {
    const bool is_row = row < rows.count;
    bool finite = true;
    double squares = 0;
    for (std::int64_t column = lane(); column < padded; column += kWarp) {
      float value = 0;
      if (is_row && column < dim) {
        value = rows.rows[row * dim + column];
        finite &= isfinite(value);
        if (has_lists) value -= centroids.mean[column];
      }
      squares += static_cast<double>(value) * value;
      if (has_lists) to[row * padded + column] = static_cast<float>(Tf32(value));
    }
    finite = __all_sync(kAllLanes, finite);
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      squares += __shfl_xor_sync(kAllLanes, squares, distance);
    if (lane() != 0 || !is_row) return;
    if (!finite) note_bad_row(rows.first_bad, row);
    if (!has_lists) return;
    const ScoreErrors& errors = centroids.errors;
    const float length = static_cast<float>(sqrt(squares)) * kLengthRounding;
    const float reach = length + errors.reach;
    const bool is_safe = reach < kSafeLength;  // false for NaN; beyond, every list may be the nearest one
    searches[row] = {is_safe ? errors.by_length * length + errors.always : INFINITY,
                     is_safe ? errors.rounding * reach * reach : 0.f, -INFINITY, NAN, -1};
  });
}

// --- the nearest list ---

// By a whole warp; all lanes get it.
template <bool kL2>
__device__ float distance(const float* row, const float* centroid, std::int64_t dim) {
  const std::int64_t part = lane() % kSums;
  float sum = 0, total = 0;
  std::int64_t i = 0;
  auto add = [&](std::int64_t k, float& to) {
    if constexpr (kL2) {
      const float difference = row[k] - centroid[k];
      to = fmaf(difference, difference, to);
    } else {
      to = fmaf(row[k], centroid[k], to);
    }
  };
  for (; i + kSums <= dim; i += kSums) add(i + part, sum);
  for (; i < dim; ++i) add(i, total);
  for (int from = 0; from < kSums; ++from) total += __shfl_sync(kAllLanes, sum, from);
  const float away = kL2 ? total : -total;
  return away <= INFINITY ? away : INFINITY;  // NaN is as far as can be
}

// Goes on with the search of one row with a list that may be the nearest one.
template <bool kL2>
__device__ void consider(std::int64_t list, const float* row, const DeviceCentroids& centroids,
                         ListSearch& search) {
  if (search.list < 0) {
    search.list = static_cast<std::int32_t>(list);
    return;
  }
  auto away_of = [&](std::int64_t each) {
    return distance<kL2>(row, centroids.values + each * centroids.dim, centroids.dim);
  };
  if (search.away != search.away) search.away = away_of(search.list);
  const float away = away_of(list);
  if (away < search.away || (away == search.away && list < search.list)) {
    search.away = away;
    search.list = static_cast<std::int32_t>(list);
  }
}

struct FourFloats {
  float values[kVector];
  __device__ explicit FourFloats(const float* from) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
  }
};

// `scores` and centroids.lengths can be read up to the next multiple of kPadding.
template <bool kL2>
__global__ void search_kernel(AssignedRows rows, DeviceCentroids centroids, const float* scores,
                              std::int64_t stride, std::int64_t first_list, std::int64_t lists,
                              ListSearch* searches) {
  const float* lengths = centroids.lengths + first_list;
  const bool is_last = first_list + lists == centroids.count;
  for_each_row(rows.count, [&](std::int64_t index) {
    const float* of_row = scores + index * stride;
    ListSearch search = searches[index];
    const auto error_of = [&](float length) {
      return length * (search.error + centroids.errors.by_centroid * length);
    };
#pragma unroll 4
    for (std::int64_t list = lane() * kVector; list < lists; list += kWarp * kVector) {
      const FourFloats score(of_row + list), length(lengths + list);
      for (int k = 0; k < kVector; ++k)  // fmaxf passes over NaN
        if (list + k < lists)
          search.floor = fmaxf(search.floor, score.values[k] - error_of(length.values[k]));
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      search.floor = fmaxf(search.floor, __shfl_xor_sync(kAllLanes, search.floor, distance));

    const float least_high = search.floor - 2 * search.slack;
    for (std::int64_t first = 0; first < lists; first += kWarp * kVector) {
      const std::int64_t own = first + lane() * kVector;
      unsigned may_be = 0;  // a bit for each of this lane's lists
      if (own < lists) {
        const FourFloats score(of_row + own), length(lengths + own);
        for (int k = 0; k < kVector; ++k)
          if (own + k < lists && !(score.values[k] + error_of(length.values[k]) < least_high))
            may_be |= 1u << k;
      }
      if (__ballot_sync(kAllLanes, may_be != 0) == 0) continue;
      for (int k = 0; k < kVector; ++k)
        for (unsigned left = __ballot_sync(kAllLanes, (may_be >> k & 1) != 0); left != 0; left &= left - 1) {
          const std::int64_t list = first_list + first + (__ffs(static_cast<int>(left)) - 1) * kVector + k;
          consider<kL2>(list, rows.rows + index * centroids.dim, centroids, search);
        }
    }
    if (lane() != 0) return;
    searches[index] = search;
    if (is_last) rows.lists[index] = search.list;
  });
}

// --- product codes ---

// A block takes one part of a tile of rows with all entries, as a matrix product does: a thread has a few
// rows and every fourth four entries, its sums stay in registers, and what they are made of in shared memory.
constexpr int kEntries = Codebooks::kEntries;
constexpr int kTileRows = 64, kThreadRows = 4;
constexpr int kEntryThreads = kWarp * kWarpsPerBlock / (kTileRows / kThreadRows);  // that share their rows
constexpr int kThreadEntries = kEntries / kEntryThreads;
constexpr int kDepth = 16;                    // dimensions at once
constexpr int kRowStride = kTileRows + 4;     // of a dimension; neighbours in other banks
constexpr std::int64_t kEncodeBlocks = 4096;  // about
static_assert(kEntryThreads == 16 && kThreadEntries % kVector == 0 && kRowStride % kVector == 0);

struct EncodeMemory {
  static constexpr int kRowValues = kDepth * kRowStride, kValues = kRowValues + kDepth * kEntries;
  float* rows = fct_shared;               // (kDepth, kRowStride)
  float* book = fct_shared + kRowValues;  // (kDepth, kEntries)
};

// One part of the codebooks, and where the rows' parts are.
struct EncodedPart {
  const AssignedRows& rows;
  const float* centroids;  // null: what is encoded is the row itself
  const float* book;       // (width, kEntries)
  std::int64_t width, dim, first_column;

  __device__ void load_book(std::int64_t depth, std::int64_t count, const EncodeMemory& memory) const {
    for (int i = static_cast<int>(threadIdx.x); i < count * kEntries; i += kWarp * kWarpsPerBlock)
      memory.book[i] = book[depth * kEntries + i];
  }
  __device__ void load_rows(std::int64_t first_row, std::int64_t depth, std::int64_t count,
                            const EncodeMemory& memory) const {
    for (int i = static_cast<int>(threadIdx.x); i < kTileRows * count; i += kWarp * kWarpsPerBlock) {
      const std::int64_t row = first_row + i / count, k = i % count, column = first_column + depth + k;
      float value = 0;
      if (row < rows.count) {
        value = rows.rows[row * dim + column];
        if (centroids != nullptr) value -= centroids[rows.lists[row] * dim + column];
      }
      memory.rows[k * kRowStride + i / count] = value;
    }
  }
};

__device__ void add_squares(const EncodeMemory& memory, std::int64_t count, int row_thread, int entry_thread,
                            float (&sums)[kThreadRows][kThreadEntries]) {
  for (std::int64_t k = 0; k < count; ++k) {
    const FourFloats row(memory.rows + k * kRowStride + row_thread * kThreadRows);
#pragma unroll
    for (int j = 0; j < kThreadEntries / kVector; ++j) {
      const FourFloats entry(memory.book + k * kEntries + (j * kEntryThreads + entry_thread) * kVector);
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          const float difference = row.values[r] - entry.values[e];
          float& sum = sums[r][j * kVector + e];
          sum = fmaf(difference, difference, sum);
        }
    }
  }
}

// The nearest of a row's entries, the lowest number among equals, by all threads that share the row.
__device__ int nearest_entry(const float (&sums)[kThreadEntries], int entry_thread) {
  float least = INFINITY;
  int nearest = 0;
#pragma unroll
  for (int i = 0; i < kThreadEntries; ++i)
    if (sums[i] < least) {
      least = sums[i];
      nearest = (i / kVector * kEntryThreads + entry_thread) * kVector + i % kVector;
    }
  for (int distance = kEntryThreads / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, least, distance);
    const int number = __shfl_xor_sync(kAllLanes, nearest, distance);
    if (other < least || (other == least && number < nearest)) {
      least = other;
      nearest = number;
    }
  }
  return nearest;
}

__global__ void encode_kernel(AssignedRows rows, const float* centroids, DeviceCodebooks codebooks) {
  const EncodeMemory memory;
  const std::int64_t part = blockIdx.x % codebooks.parts, width = codebooks.part_dim;
  const EncodedPart encoded{
      rows,        centroids, codebooks.values + part * width * kEntries, width, codebooks.parts * width,
      part * width};
  const int row_thread = static_cast<int>(threadIdx.x) / kEntryThreads;
  const int entry_thread = static_cast<int>(threadIdx.x) % kEntryThreads;
  const std::int64_t step = gridDim.x / codebooks.parts * kTileRows;
  bool has_book = false;
  for (std::int64_t first = blockIdx.x / codebooks.parts * std::int64_t{kTileRows}; first < rows.count;
       first += step) {
    float sums[kThreadRows][kThreadEntries] = {};
    for (std::int64_t depth = 0; depth < width; depth += kDepth) {
      const std::int64_t count = width - depth < kDepth ? width - depth : kDepth;
      __syncthreads();  // nobody reads any more what is written now
      if (!has_book) encoded.load_book(depth, count, memory);
      encoded.load_rows(first, depth, count, memory);
      __syncthreads();
      add_squares(memory, count, row_thread, entry_thread, sums);
    }
    has_book = width <= kDepth;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int nearest = nearest_entry(sums[r], entry_thread);
      const std::int64_t row = first + row_thread * kThreadRows + r;
      if (entry_thread == 0 && row < rows.count)
        rows.codes[row * codebooks.parts + part] = static_cast<std::uint8_t>(nearest);
    }
  }
}

}  // namespace

cudaError_t shift(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& to,
                  std::int64_t padded, std::int64_t block_rows, ListSearch* searches, cudaStream_t stream) {
  return launch(shift_kernel, std::max(rows.count, block_rows), stream, rows, centroids, centroids.dim,
                static_cast<float*>(to.data), padded, block_rows, searches);
}

cudaError_t search(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& scores,
                   std::int64_t first_list, std::int64_t lists, ListSearch* searches, cudaStream_t stream) {
  const auto kernel = centroids.metric == Metric::kL2 ? search_kernel<true> : search_kernel<false>;
  return launch(kernel, rows.count, stream, rows, centroids, static_cast<const float*>(scores.data),
                scores.stride, first_list, lists, searches);
}

cudaError_t encode(const AssignedRows& rows, const DeviceCentroids& centroids,
                   const DeviceCodebooks& codebooks, cudaStream_t stream) {
  const std::int64_t tiles = (rows.count + kTileRows - 1) / kTileRows;
  const std::int64_t blocks = std::clamp<std::int64_t>(kEncodeBlocks / codebooks.parts, 1, tiles);
  return launch_blocks(encode_kernel, blocks * codebooks.parts, EncodeMemory::kValues * sizeof(float), stream,
                       rows, centroids.values, codebooks);
}

}  // namespace fct::cuda::kernels
