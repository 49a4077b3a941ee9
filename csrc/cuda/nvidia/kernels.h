// The operations on rows that no library has; see Device for what each does. All widths are in elements.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/device.h"

namespace fct::cuda::kernels {

cudaError_t load(const Matrix& from, const Matrix& to, Extent extent, std::int64_t block_rows,
                 RowChecks checks, cudaStream_t stream);
cudaError_t store(const Matrix& from, const Matrix& to, Extent extent, RowChecks checks, cudaStream_t stream);
cudaError_t convert(const Matrix& from, const Matrix& to, Extent extent, Activation activation,
                    cudaStream_t stream);
cudaError_t flag(const Matrix& from, Extent extent, std::uint8_t* flags, cudaStream_t stream);
cudaError_t add(const Matrix& left, const Matrix& right, const Matrix& to, Extent extent,
                cudaStream_t stream);
cudaError_t normalize(const Matrix& from, const Matrix& to, Extent extent, cudaStream_t stream);
cudaError_t shift(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& to,
                  std::int64_t padded, std::int64_t block_rows, ListSearch* searches, cudaStream_t stream);
cudaError_t search(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& scores,
                   std::int64_t first_list, std::int64_t lists, ListSearch* searches, cudaStream_t stream);
cudaError_t encode(const AssignedRows& rows, const DeviceCentroids& centroids,
                   const DeviceCodebooks& codebooks, cudaStream_t stream);

}  // namespace fct::cuda::kernels
