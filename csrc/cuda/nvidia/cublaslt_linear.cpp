// cuBLASLt is column-major. Row-major rows (n, k) are a column-major (k, n) matrix, and the weight (m, k) is
// a column-major (k, m) one, so a layer is D (m, n) = transposed(A) B with A the weight and B the rows: the
// "TN" form, the only one that float8 kernels have.
#include "cublaslt_linear.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <sstream>

#include "check.h"
#include "device_memory.h"
#include "kernels.h"

namespace fct::cuda {
namespace {

constexpr std::uint32_t kPointerAlignment = 16;  // every value begins at a multiple of 16 elements
constexpr std::int64_t kReferenceRows = 32768;   // kernels are chosen for; see Note [Same bytes]
constexpr int kKernels = 8;                      // asked for
constexpr float kLargestFloat8 = 448;

template <typename Handle, cublasStatus_t (*kDestroy)(Handle)>
struct Destroy {
  void operator()(Handle handle) const { kDestroy(handle); }
};
template <typename Handle, cublasStatus_t (*kDestroy)(Handle)>
using Owner = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<Handle, kDestroy>>;

using MatmulDesc = Owner<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using MatrixLayout = Owner<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owner<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kTf32:
      return CUDA_R_32F;
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_8F_E4M3;
  }
}

// What a bias has to be stored as: as the output, but float8 kernels want bfloat16 unless they write float16.
DType bias_type(DType input, DType output) {
  if (input != DType::kFloat8) return output;
  return output == DType::kFloat16 ? DType::kFloat16 : DType::kBFloat16;
}

MatrixLayout make_layout(DType dtype, std::int64_t height, std::int64_t columns, std::int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  FCT_CHECK(cublasLtMatrixLayoutCreate(&layout, type_of(dtype), static_cast<std::uint64_t>(height),
                                       static_cast<std::uint64_t>(columns), stride));
  return MatrixLayout(layout);
}

template <typename T>
void set(const MatmulDesc& desc, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  FCT_CHECK(cublasLtMatmulDescSetAttribute(desc.get(), attribute, &value, sizeof value));
}

template <typename T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  FCT_CHECK(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value));
}

// The power of two that brings the largest weight close to the largest float8.
float weight_scale(const std::vector<float>& weight) {
  float largest = 0;
  for (float value : weight) largest = std::max(largest, std::abs(value));
  if (largest == 0) return 1;
  return std::exp2(std::clamp(std::floor(std::log2(kLargestFloat8 / largest)), -64.f, 64.f));
}

// Casts float32 rows on the device, as they are cast everywhere else.
DeviceMemory uploaded(const std::vector<float>& values, std::int64_t width, DType dtype, float scale) {
  const auto rows = static_cast<std::int64_t>(values.size()) / width;
  DeviceMemory plain(values.size() * sizeof(float)), cast(values.size() * size_of(dtype));
  FCT_CHECK(cudaMemcpy(plain.get(), values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));
  FCT_CHECK(kernels::convert({plain.get(), DType::kFloat32, width, 1}, {cast.get(), dtype, width, scale},
                             {rows, width, width}, Activation::kNone, nullptr));
  FCT_CHECK(cudaStreamSynchronize(nullptr));
  return cast;
}

// The layouts of one row count. What cuBLASLt could add to the product we never use, but it must have a type
// that goes with the output's: it is the output itself, in the same layout, unless that is float8.
struct Shape {
  MatrixLayout input, output, beside_float8;

  Shape(const LinearSpec& spec, std::int64_t rows)
      : input(make_layout(spec.input.dtype, spec.d_in, rows, spec.input.stride)),
        output(make_layout(spec.output.dtype, spec.d_out, rows, spec.output.stride)) {
    if (spec.output.dtype == DType::kFloat8)
      beside_float8 =
          make_layout(bias_type(spec.input.dtype, spec.output.dtype), spec.d_out, rows, spec.output.stride);
  }
  cublasLtMatrixLayout_t added() const { return (beside_float8 ? beside_float8 : output).get(); }
};

class CublasltLinear : public PreparedLinear {
 public:
  CublasltLinear(cublasLtHandle_t handle, const LinearSpec& spec)
      : handle_(handle),
        spec_(spec),
        weight_layout_(make_layout(spec.input.dtype, spec.d_in, spec.d_out, spec.d_in)) {
    make_description();
    for (std::int64_t rows : spec_.rows) shapes_.emplace_back(spec_, rows);
  }

  // False if there is no kernel.
  bool choose_kernels() {
    auto kernels = best_kernels(Shape(spec_, kReferenceRows));
    std::erase_if(kernels, [&](const auto& kernel) {
      return !std::all_of(shapes_.begin(), shapes_.end(),
                          [&](const Shape& shape) { return can_do(kernel, shape); });
    });
    for (const Shape& shape : shapes_) {
      const auto those = kernels.empty() ? best_kernels(shape) : kernels;
      if (those.empty()) return false;
      kernels_.push_back(those[std::min(static_cast<std::size_t>(spec_.choice), those.size() - 1)]);
    }
    return true;
  }

  void upload() {
    const float scale = spec_.input.dtype == DType::kFloat8 ? weight_scale(spec_.weight) : 1;
    weight_ = uploaded(spec_.weight, spec_.d_in, spec_.input.dtype, scale);
    bias_ = uploaded(spec_.bias, spec_.d_out, bias_type(spec_.input.dtype, spec_.output.dtype), 1);
    set(description_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_.get());
    if (spec_.input.dtype == DType::kFloat8) {
      // Float8 kernels multiply: rows and weights by these on the way in, results on the way out.
      scales_ = uploaded({1 / scale, 1 / spec_.input.scale, spec_.output.scale}, 3, DType::kFloat32, 1);
      const float* first = static_cast<const float*>(scales_.get());
      set(description_, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, first);
      set(description_, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, first + 1);
      if (spec_.output.dtype == DType::kFloat8)
        set(description_, CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, first + 2);
    }
    spec_.weight.clear();
    spec_.weight.shrink_to_fit();
  }

  void enqueue(std::size_t size, void* workspace, Stream stream) override {
    const float one = 1, zero = 0;
    const Shape& shape = shapes_[size];
    const void* added = spec_.output.dtype == DType::kFloat8 ? nullptr : spec_.output.data;
    FCT_CHECK(cublasLtMatmul(handle_, description_.get(), &one, weight_.get(), weight_layout_.get(),
                             spec_.input.data, shape.input.get(), &zero, added, shape.added(),
                             spec_.output.data, shape.output.get(), &kernels_[size], workspace,
                             kLinearWorkspace, static_cast<cudaStream_t>(stream)));
  }

  std::string kernel() const override {
    std::ostringstream text;
    text << "cublaslt";
    for (std::size_t size = 0; size < kernels_.size(); ++size) {
      int id = -1, tile = -1;
      cublasLtMatmulAlgoConfigGetAttribute(&kernels_[size], CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, nullptr);
      cublasLtMatmulAlgoConfigGetAttribute(&kernels_[size], CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile,
                                           nullptr);
      text << (size == 0 ? " " : "|") << id << '.' << tile;
    }
    return text.str();
  }

 private:
  void make_description() {
    cublasLtMatmulDesc_t created = nullptr;
    const auto compute =
        spec_.precision == Precision::kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    FCT_CHECK(cublasLtMatmulDescCreate(&created, compute, CUDA_R_32F));
    description_.reset(created);
    set(description_, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(description_, CUBLASLT_MATMUL_DESC_EPILOGUE,
        spec_.activation == Activation::kRelu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS);
    set(description_, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
        type_of(bias_type(spec_.input.dtype, spec_.output.dtype)));
  }

  // The heuristics' choices, best first; none if there is no kernel. No sums in pieces, for the same bytes.
  std::vector<cublasLtMatmulAlgo_t> best_kernels(const Shape& shape) const {
    cublasLtMatmulPreference_t created = nullptr;
    FCT_CHECK(cublasLtMatmulPreferenceCreate(&created));
    const Preference preference(created);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kLinearWorkspace);
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE));
    for (auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(preference, attribute, kPointerAlignment);
    std::array<cublasLtMatmulHeuristicResult_t, kKernels> results{};
    int found = 0;
    const auto status = cublasLtMatmulAlgoGetHeuristic(handle_, description_.get(), weight_layout_.get(),
                                                       shape.input.get(), shape.added(), shape.output.get(),
                                                       preference.get(), kKernels, results.data(), &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
        (status == CUBLAS_STATUS_SUCCESS && found == 0))
      return {};
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    std::vector<cublasLtMatmulAlgo_t> kernels;
    for (int index = 0; index < found; ++index)
      if (results[static_cast<std::size_t>(index)].state == CUBLAS_STATUS_SUCCESS)
        kernels.push_back(results[static_cast<std::size_t>(index)].algo);
    return kernels;
  }

  bool can_do(const cublasLtMatmulAlgo_t& kernel, const Shape& shape) const {
    cublasLtMatmulHeuristicResult_t result{};
    return cublasLtMatmulAlgoCheck(handle_, description_.get(), weight_layout_.get(), shape.input.get(),
                                   shape.added(), shape.output.get(), &kernel,
                                   &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kLinearWorkspace;
  }

  cublasLtHandle_t handle_;
  LinearSpec spec_;
  MatmulDesc description_;
  MatrixLayout weight_layout_;
  std::vector<Shape> shapes_;  // by row count
  std::vector<cublasLtMatmulAlgo_t> kernels_;
  DeviceMemory weight_, bias_, scales_;
};

}  // namespace

std::unique_ptr<PreparedLinear> make_cublaslt_linear(cublasLtHandle_t handle, const LinearSpec& spec) {
  if (spec.activation == Activation::kGelu) return nullptr;  // cuBLASLt approximates GELU with tanh
  if (spec.output.dtype == DType::kTf32) return nullptr;     // and does not round float32 that it writes
  if (spec.output.dtype == DType::kFloat8 && spec.input.dtype != DType::kFloat8) return nullptr;
  auto linear = std::make_unique<CublasltLinear>(handle, spec);
  linear->upload();
  if (!linear->choose_kernels()) return nullptr;
  return linear;
}

}  // namespace fct::cuda
