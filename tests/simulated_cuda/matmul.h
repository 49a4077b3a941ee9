// One matrix product of cuBLASLt: what it may be, and how it is computed.
// D = activation(alpha * scale_a * scale_b * transposed(A) B + beta * C + bias) * scale_d, all column-major.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <map>
#include <vector>

namespace simulated {

struct MatrixLayout {
  cudaDataType_t type;
  std::int64_t rows, columns, stride;

  std::size_t bytes() const;  // from its first element to its last
};

// Attributes by number; what was not set has the documented default.
struct MatmulDesc {
  cublasComputeType_t compute;
  cudaDataType_t scale_type;
  std::map<int, std::uint64_t> attributes;

  std::uint64_t get(cublasLtMatmulDescAttributes_t attribute, std::uint64_t otherwise = 0) const;
  const void* pointer(cublasLtMatmulDescAttributes_t attribute) const;
  cudaDataType_t bias_type(cudaDataType_t output) const;
  bool has_bias() const;
  bool has_relu() const;
};

struct Preference {
  std::uint64_t workspace = 0;
  std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  std::array<std::uint32_t, 4> alignment{256, 256, 256, 256};  // of A, B, C and D in bytes
};

struct Problem {
  const MatmulDesc& desc;
  const MatrixLayout &a, &b, &c, &d;
};

// What the documentation of cublasLtMatmul asks for; CUBLAS_STATUS_SUCCESS if it is met.
cublasStatus_t judge(const Problem& problem);

// Kernels add in different orders, so that their results differ in the last bits.
struct Kernel {
  int id, tile;
  std::uint32_t alignment;   // bytes
  std::int64_t min_columns;  // of D
  std::uint64_t workspace;

  bool can_do(const Problem& problem) const;
};
// Best first. Null if there is none of this number.
std::vector<const Kernel*> kernels_for(const Problem& problem, const Preference& preference);
const Kernel* find_kernel(int id);

struct Matrices {
  const void *a, *b, *c;
  void* d;
  float alpha, beta;
};
void multiply(const Kernel& kernel, const MatmulDesc& desc, const MatrixLayout& a, const MatrixLayout& b,
              const MatrixLayout& c, const MatrixLayout& d, const Matrices& matrices);

std::size_t bytes_of(cudaDataType_t type);  // 0 for what is not simulated
float load(const void* data, cudaDataType_t type, std::int64_t index);
void store(void* data, cudaDataType_t type, std::int64_t index, float value);

}  // namespace simulated
