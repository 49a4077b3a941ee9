// Elements of rows in any storage type, and the fake device's operations on them, by plain loops.
#pragma once

#include "cuda/device.h"

namespace fct::testing {

float load_element(const cuda::Matrix& matrix, std::int64_t row, std::int64_t column);
void store_element(const cuda::Matrix& matrix, std::int64_t row, std::int64_t column, float value);
float activated(float value, Activation activation);

void load_rows(const cuda::Matrix& from, const cuda::Matrix& to, cuda::Extent extent, std::int64_t block_rows,
               cuda::RowChecks checks);
void store_rows(const cuda::Matrix& from, const cuda::Matrix& to, cuda::Extent extent,
                cuda::RowChecks checks);
void convert_rows(const cuda::Matrix& from, const cuda::Matrix& to, cuda::Extent extent,
                  Activation activation);
void flag_rows(const cuda::Matrix& from, cuda::Extent extent, std::uint8_t* flags);
void add_rows(const cuda::Matrix& left, const cuda::Matrix& right, const cuda::Matrix& to,
              cuda::Extent extent);
void normalize_rows(const cuda::Matrix& from, const cuda::Matrix& to, cuda::Extent extent);

}  // namespace fct::testing
