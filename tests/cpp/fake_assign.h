// The fake device's operations that find lists and codes, by plain loops.
#pragma once

#include "cuda/device.h"

namespace fct::testing {

void shift_rows(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids,
                const cuda::Matrix& to, std::int64_t padded, std::int64_t block_rows,
                cuda::ListSearch* searches);
void search_rows(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids,
                 const cuda::Matrix& scores, std::int64_t first_list, std::int64_t lists,
                 cuda::ListSearch* searches);
void encode_rows(const cuda::AssignedRows& rows, const cuda::DeviceCentroids& centroids,
                 const cuda::DeviceCodebooks& codebooks);

// In float32, in the order in which the kernels sum: a product and its sum are rounded once.
float float_distance(const float* row, const float* centroid, std::int64_t dim, Metric metric);

}  // namespace fct::testing
