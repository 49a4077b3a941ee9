// "cublasLtMatmul()" in https://docs.nvidia.com/cuda/cublas/: which types go together, what float8 asks for.
#include <algorithm>

#include "matmul.h"
#include "simulated_device.h"

namespace simulated {
namespace {

constexpr cudaDataType_t kFloat8 = CUDA_R_8F_E4M3;

struct Types {
  cudaDataType_t inputs, c, d, bias;
};
// With CUBLAS_COMPUTE_32F; A and B are of one type.
constexpr Types kTypes[] = {
    {CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F},  {CUDA_R_16F, CUDA_R_16F, CUDA_R_16F, CUDA_R_16F},
    {CUDA_R_16F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F},  {CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF},
    {CUDA_R_16BF, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F}, {kFloat8, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF},
    {kFloat8, CUDA_R_16BF, kFloat8, CUDA_R_16BF},      {kFloat8, CUDA_R_16F, kFloat8, CUDA_R_16F},
    {kFloat8, CUDA_R_16F, CUDA_R_16F, CUDA_R_16F},     {kFloat8, CUDA_R_32F, CUDA_R_32F, CUDA_R_16BF},
};

bool has_types(const Problem& problem) {
  const auto& [desc, a, b, c, d] = problem;
  if (a.type != b.type || desc.scale_type != CUDA_R_32F) return false;
  if (desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32) {
    if (a.type != CUDA_R_32F) return false;
  } else if (desc.compute != CUBLAS_COMPUTE_32F) {
    return false;
  }
  return std::any_of(std::begin(kTypes), std::end(kTypes), [&](const Types& row) {
    return row.inputs == a.type && row.c == c.type && row.d == d.type &&
           (!desc.has_bias() || row.bias == desc.bias_type(d.type));
  });
}

bool has_shapes(const Problem& problem) {
  const auto& [desc, a, b, c, d] = problem;
  const bool transposes_a = desc.get(CUBLASLT_MATMUL_DESC_TRANSA) == CUBLAS_OP_T;
  const bool transposes_b = desc.get(CUBLASLT_MATMUL_DESC_TRANSB) == CUBLAS_OP_T;
  const auto [m, k] = transposes_a ? std::pair(a.columns, a.rows) : std::pair(a.rows, a.columns);
  const auto [n, k_of_b] = transposes_b ? std::pair(b.rows, b.columns) : std::pair(b.columns, b.rows);
  for (const MatrixLayout* each : {&a, &b, &c, &d})
    if (each->rows <= 0 || each->columns <= 0 || each->stride < each->rows) return false;
  return k == k_of_b && d.rows == m && d.columns == n && c.rows == m && c.columns == n;
}

bool is_multiple_of_16_bytes(std::int64_t elements, cudaDataType_t type) {
  return elements * static_cast<std::int64_t>(bytes_of(type)) % 16 == 0;
}

// "A must be transposed and B non-transposed"; all dimensions and leading dimensions are multiples of 16
// bytes.
cublasStatus_t judge_float8(const Problem& problem) {
  const auto& [desc, a, b, c, d] = problem;
  if (compute_capability() < 89) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (desc.get(CUBLASLT_MATMUL_DESC_TRANSA) != CUBLAS_OP_T) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const MatrixLayout* each : {&a, &b, &c, &d})
    if (!is_multiple_of_16_bytes(each->rows, each->type) ||
        !is_multiple_of_16_bytes(each->stride, each->type))
      return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t judge_scales(const Problem& problem) {
  const auto& [desc, a, b, c, d] = problem;
  const bool narrow_inputs = a.type == kFloat8, narrow_output = d.type == kFloat8;
  for (auto attribute : {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER})
    if (desc.pointer(attribute) != nullptr && !narrow_inputs) return CUBLAS_STATUS_INVALID_VALUE;
  if (desc.pointer(CUBLASLT_MATMUL_DESC_D_SCALE_POINTER) != nullptr && !narrow_output)
    return CUBLAS_STATUS_INVALID_VALUE;
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

std::size_t MatrixLayout::bytes() const {
  return static_cast<std::size_t>((columns - 1) * stride + rows) * bytes_of(type);
}

std::uint64_t MatmulDesc::get(cublasLtMatmulDescAttributes_t attribute, std::uint64_t otherwise) const {
  const auto found = attributes.find(attribute);
  return found == attributes.end() ? otherwise : found->second;
}
const void* MatmulDesc::pointer(cublasLtMatmulDescAttributes_t attribute) const {
  return reinterpret_cast<const void*>(get(attribute));
}
cudaDataType_t MatmulDesc::bias_type(cudaDataType_t output) const {
  return static_cast<cudaDataType_t>(get(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, output));
}
bool MatmulDesc::has_bias() const {
  return (get(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT) & CUBLASLT_EPILOGUE_BIAS) != 0;
}
bool MatmulDesc::has_relu() const {
  return (get(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT) & CUBLASLT_EPILOGUE_RELU) != 0;
}

cublasStatus_t judge(const Problem& problem) {
  const auto epilogue = problem.desc.get(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT);
  if (epilogue != CUBLASLT_EPILOGUE_DEFAULT && (epilogue & ~std::uint64_t{CUBLASLT_EPILOGUE_RELU_BIAS}) != 0)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!has_shapes(problem)) return CUBLAS_STATUS_INVALID_VALUE;
  if (!has_types(problem)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (const auto status = judge_scales(problem); status != CUBLAS_STATUS_SUCCESS) return status;
  return problem.a.type == kFloat8 ? judge_float8(problem) : CUBLAS_STATUS_SUCCESS;
}

}  // namespace simulated
