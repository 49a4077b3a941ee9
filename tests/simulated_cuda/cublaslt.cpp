// cuBLASLt's calls.
#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "matmul.h"
#include "simulated_device.h"

using namespace simulated;

namespace {

struct Handle {
  CUcontext context;
};

// Objects are made and freed by the caller; a handle to anything else is refused.
template <typename Object, typename Opaque>
class Registry {
 public:
  Opaque* add(Object object) {
    const std::lock_guard lock(mutex());
    auto* made = new Object(std::move(object));
    live_.insert(made);
    return reinterpret_cast<Opaque*>(made);
  }
  Object* find(const Opaque* opaque) {
    const std::lock_guard lock(mutex());
    auto* object = reinterpret_cast<Object*>(const_cast<Opaque*>(opaque));
    return live_.contains(object) ? object : nullptr;
  }
  cublasStatus_t remove(Opaque* opaque) {
    Object* object = find(opaque);
    if (object == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
    const std::lock_guard lock(mutex());
    live_.erase(object);
    delete object;
    return CUBLAS_STATUS_SUCCESS;
  }

 private:
  std::set<const Object*> live_;
};

auto& handles() {
  static auto* all = new Registry<Handle, std::remove_pointer_t<cublasLtHandle_t>>;
  return *all;
}
auto& descs() {
  static auto* all = new Registry<MatmulDesc, cublasLtMatmulDescOpaque_t>;
  return *all;
}
auto& layouts() {
  static auto* all = new Registry<MatrixLayout, cublasLtMatrixLayoutOpaque_t>;
  return *all;
}
auto& preferences() {
  static auto* all = new Registry<Preference, cublasLtMatmulPreferenceOpaque_t>;
  return *all;
}

// Bytes of the attributes that are simulated; 0 for others.
std::size_t size_of(cublasLtMatmulDescAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
    case CUBLASLT_MATMUL_DESC_TRANSB:
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return 4;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
    case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER:
      return 8;
    default:
      return 0;
  }
}

// cublasLtMatmulAlgo_t holds a kernel's number here.
const Kernel* kernel_of(const cublasLtMatmulAlgo_t* algo) {
  return algo == nullptr ? nullptr : find_kernel(static_cast<int>(algo->data[0]));
}

// Nothing if one of the handles is none.
std::optional<Problem> problem_of(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                  cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                  cublasLtMatrixLayout_t d) {
  if (descs().find(desc) == nullptr) return std::nullopt;
  for (auto layout : {a, b, c, d})
    if (layouts().find(layout) == nullptr) return std::nullopt;
  return Problem{*descs().find(desc), *layouts().find(a), *layouts().find(b), *layouts().find(c),
                 *layouts().find(d)};
}

std::size_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  return address & (~address + 1);
}

// Everything a product touches: must lie in one allocation of its device each.
struct Extents {
  std::vector<std::pair<const void*, std::size_t>> ranges;

  Extents(const Problem& problem, const Matrices& matrices, const void* workspace,
          std::size_t workspace_bytes) {
    const auto& desc = problem.desc;
    add(matrices.a, problem.a.bytes());
    add(matrices.b, problem.b.bytes());
    add(matrices.c, problem.c.bytes());
    add(matrices.d, problem.d.bytes());
    add(workspace, workspace_bytes);
    if (desc.has_bias())
      ranges.emplace_back(
          desc.pointer(CUBLASLT_MATMUL_DESC_BIAS_POINTER),
          static_cast<std::size_t>(problem.d.rows) * bytes_of(desc.bias_type(problem.d.type)));
    for (auto attribute : {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                           CUBLASLT_MATMUL_DESC_D_SCALE_POINTER})
      add(desc.pointer(attribute), sizeof(float));
  }
  bool are_on(int device) const {
    return std::all_of(ranges.begin(), ranges.end(),
                       [&](const auto& range) { return device_of(range.first, range.second) == device; });
  }

 private:
  void add(const void* first, std::size_t bytes) {
    if (first != nullptr) ranges.emplace_back(first, bytes);
  }
};

}  // namespace

extern "C" {

std::size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
  }
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (current() == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = handles().add({current()});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return handles().remove(handle); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = descs().add({compute, scale, {}});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return descs().remove(desc); }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              std::size_t bytes) {
  MatmulDesc* found = descs().find(desc);
  if (found == nullptr || value == nullptr || bytes == 0 || bytes != size_of(attribute))
    return CUBLAS_STATUS_INVALID_VALUE;
  std::uint64_t bits = 0;
  std::memcpy(&bits, value, bytes);
  found->attributes[attribute] = bits;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          std::uint64_t rows, std::uint64_t columns, std::int64_t stride) {
  if (bytes_of(type) == 0) return CUBLAS_STATUS_INVALID_VALUE;
  *layout =
      layouts().add({type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns), stride});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return layouts().remove(layout); }

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = preferences().add({});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return preferences().remove(preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, std::size_t bytes) {
  Preference* found = preferences().find(preference);
  if (found == nullptr || value == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto set = [&](auto& target) {
    if (bytes != sizeof target) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&target, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return set(found->workspace);
  if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) return set(found->reductions);
  if (attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
      attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES)
    return set(
        found->alignment[static_cast<std::size_t>(attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES)]);
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void* value, std::size_t bytes, std::size_t* written) {
  const Kernel* kernel = kernel_of(algo);
  if (kernel == nullptr || bytes != sizeof(int)) return CUBLAS_STATUS_INVALID_VALUE;
  if (attribute == CUBLASLT_ALGO_CONFIG_ID)
    std::memcpy(value, &kernel->id, bytes);
  else if (attribute == CUBLASLT_ALGO_CONFIG_TILE_ID)
    std::memcpy(value, &kernel->tile, bytes);
  else
    return CUBLAS_STATUS_INVALID_VALUE;
  if (written != nullptr) *written = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo,
                                       cublasLtMatmulHeuristicResult_t* result) {
  if (handles().find(handle) == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const auto problem = problem_of(desc, a, b, c, d);
  const Kernel* kernel = kernel_of(algo);
  if (!problem || kernel == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (const auto status = judge(*problem); status != CUBLAS_STATUS_SUCCESS) return status;
  if (!kernel->can_do(*problem)) return CUBLAS_STATUS_NOT_SUPPORTED;
  result->workspaceSize = kernel->workspace;
  result->state = CUBLAS_STATUS_SUCCESS;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int asked,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  *found = 0;
  if (handles().find(handle) == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const auto problem = problem_of(desc, a, b, c, d);
  const Preference* wanted = preferences().find(preference);
  if (!problem || wanted == nullptr || asked <= 0) return CUBLAS_STATUS_INVALID_VALUE;
  if (const auto status = judge(*problem); status != CUBLAS_STATUS_SUCCESS) return status;
  for (const Kernel* kernel : kernels_for(*problem, *wanted)) {
    if (*found == asked) break;
    cublasLtMatmulHeuristicResult_t& result = results[(*found)++];
    result = {};
    result.algo.data[0] = static_cast<std::uint64_t>(kernel->id);
    result.workspaceSize = kernel->workspace;
    result.state = CUBLAS_STATUS_SUCCESS;
  }
  return *found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc_handle, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, std::size_t workspace_bytes,
                              cudaStream_t stream) {
  const std::lock_guard lock(mutex());
  const Handle* owner = handles().find(handle);
  if (owner == nullptr || current() != owner->context) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (owner->context->fault != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  cublasLtMatmulHeuristicResult_t result{};
  if (algo == nullptr || alpha == nullptr || beta == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const auto status =
      cublasLtMatmulAlgoCheck(handle, desc_handle, a_layout, b_layout, c_layout, d_layout, algo, &result);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const Problem problem = *problem_of(desc_handle, a_layout, b_layout, c_layout, d_layout);
  const Kernel& kernel = *kernel_of(algo);
  const Matrices matrices{a, b, c, d, *static_cast<const float*>(alpha), *static_cast<const float*>(beta)};
  // "In-place (C == D and Cdesc == Ddesc)"; without an addend C may be missing.
  if (c == d && c_layout != d_layout) return CUBLAS_STATUS_INVALID_VALUE;
  if (a == nullptr || b == nullptr || d == nullptr || (c == nullptr && matrices.beta != 0))
    return CUBLAS_STATUS_INVALID_VALUE;
  for (const void* pointer : {a, b, c, static_cast<const void*>(d)})
    if (pointer != nullptr && alignment_of(pointer) < kernel.alignment) return CUBLAS_STATUS_INVALID_VALUE;
  if (kernel.workspace > workspace_bytes || alignment_of(workspace) < 16) return CUBLAS_STATUS_INVALID_VALUE;
  if (problem.desc.has_bias() && problem.desc.pointer(CUBLASLT_MATMUL_DESC_BIAS_POINTER) == nullptr)
    return CUBLAS_STATUS_INVALID_VALUE;
  const auto queue = find_queue(stream);
  if (!queue || queue->context != owner->context) return CUBLAS_STATUS_INVALID_VALUE;

  const Extents extents(problem, matrices, workspace, kernel.workspace);
  auto work = [=, &kernel, context = owner->context, desc = problem.desc, a = problem.a, b = problem.b,
               c = problem.c, d = problem.d] {
    if (!extents.are_on(context->device)) {
      context->fault = cudaErrorIllegalAddress;
      return;
    }
    if (kernel.workspace > 0) std::memset(workspace, 0xff, std::min<std::size_t>(kernel.workspace, 4096));
    multiply(kernel, desc, a, b, c, d, matrices);
  };
  Operation operation{.work = std::move(work), .touched = {}, .after = {}};
  for (const auto& [first, bytes] : extents.ranges) operation.touched.push_back(first);
  push(queue, std::move(operation));
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
