// What the simulated device refuses, as a real one does: else it would prove nothing.
#include <cublasLt.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <thread>

#include "check.h"

namespace fct::testing {
namespace {

void* allocated(std::size_t bytes) {
  void* memory = nullptr;
  CHECK(cudaMalloc(&memory, bytes) == cudaSuccess);
  return memory;
}

cudaStream_t new_stream(unsigned flags = cudaStreamNonBlocking) {
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, flags) == cudaSuccess);
  return stream;
}

TEST(nothing_works_without_a_context) {
  std::thread([] {
    void* memory = nullptr;
    CHECK(cudaMalloc(&memory, 16) == cudaErrorDeviceUninitialized);
    CHECK(cudaGetLastError() == cudaErrorDeviceUninitialized);
    CHECK(cudaGetLastError() == cudaSuccess);
    CUcontext context = nullptr;
    CHECK(cuCtxPopCurrent(&context) == CUDA_ERROR_INVALID_CONTEXT);
  }).join();
}

TEST(a_copy_stays_in_one_allocation_of_its_device) {
  CHECK(cudaSetDevice(1) == cudaSuccess);
  void* elsewhere = allocated(64);
  CHECK(cudaSetDevice(0) == cudaSuccess);
  void* memory = allocated(64);
  char host[128] = {};
  CHECK(cudaMemcpy(memory, host, 64, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(cudaMemcpy(memory, host, 65, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(host, memory, 64, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(elsewhere, host, 64, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(host, 0, 1, nullptr) == cudaErrorInvalidValue);
  CHECK(cudaFree(host) == cudaErrorInvalidValue);
  CHECK(cudaFree(memory) == cudaSuccess && cudaFree(memory) == cudaErrorInvalidValue);
  CHECK(cudaFree(elsewhere) == cudaSuccess);
}

TEST(nothing_waits_during_a_capture) {
  CHECK(cudaSetDevice(0) == cudaSuccess);
  const cudaStream_t stream = new_stream();
  void* memory = allocated(64);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaMemsetAsync(memory, 1, 64, stream) == cudaSuccess);
  void* more = nullptr;
  CHECK(cudaMalloc(&more, 16) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && graph == nullptr);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState);
  CHECK(cudaFree(memory) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess);
}

TEST(a_graph_repeats_what_was_recorded) {
  CHECK(cudaSetDevice(0) == cudaSuccess);
  const cudaStream_t stream = new_stream();
  void* memory = allocated(4);
  char host[4] = {};
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CHECK(cudaMemsetAsync(memory, 0, 4, stream) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaMemsetAsync(memory, 7, 4, stream) == cudaSuccess);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
  auto first_byte = [&] {
    CHECK(cudaMemcpyAsync(host, memory, 4, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    return host[0];
  };
  CHECK(first_byte() == 0);
  CHECK(cudaGraphLaunch(executable, stream) == cudaSuccess);
  CHECK(first_byte() == 7);
  CHECK(cudaGraphExecDestroy(executable) == cudaSuccess &&
        cudaGraphLaunch(executable, stream) != cudaSuccess);
  CHECK(cudaFree(memory) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess);
}

TEST(the_default_stream_must_not_wait_for_a_capture) {
  CHECK(cudaSetDevice(0) == cudaSuccess);
  const cudaStream_t stream = new_stream(cudaStreamDefault);
  auto status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaStreamIsCapturing(nullptr, &status) == cudaErrorStreamCaptureImplicit);
  CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

// A layer of m values out of k for n rows, and what cuBLASLt says to it.
struct Layer {
  cudaDataType_t inputs, added, output, bias;
  std::uint64_t m = 32, n = 48, k = 64;
  std::int64_t stride = 64;  // of the rows that come in
  cublasOperation_t transposed = CUBLAS_OP_T;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;

  cublasStatus_t heuristics() const {
    CHECK(cudaSetDevice(0) == cudaSuccess);
    cublasLtHandle_t handle = nullptr;
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
    CHECK(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    CHECK(cublasLtMatmulDescCreate(&desc, compute, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
    CHECK(cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS);
    const auto epilogue = CUBLASLT_EPILOGUE_RELU_BIAS;
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias, sizeof bias);
    const bool is_transposed = transposed == CUBLAS_OP_T;
    cublasLtMatrixLayoutCreate(&a, inputs, is_transposed ? k : m, is_transposed ? m : k,
                               static_cast<std::int64_t>(is_transposed ? k : m));
    cublasLtMatrixLayoutCreate(&b, inputs, k, n, stride);
    cublasLtMatrixLayoutCreate(&c, added, m, n, static_cast<std::int64_t>(m));
    cublasLtMatrixLayoutCreate(&d, output, m, n, static_cast<std::int64_t>(m));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const auto status =
        cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, c, d, preference, 1, &result, &found);
    for (auto layout : {a, b, c, d}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
    return status;
  }
};

TEST(products_of_types_that_go_together) {
  constexpr auto kFloat8 = CUDA_R_8F_E4M3;
  CHECK((Layer{CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F}.heuristics()) == CUBLAS_STATUS_SUCCESS);
  CHECK((Layer{CUDA_R_16F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F}.heuristics()) == CUBLAS_STATUS_SUCCESS);
  CHECK((Layer{kFloat8, CUDA_R_16BF, kFloat8, CUDA_R_16BF}.heuristics()) == CUBLAS_STATUS_SUCCESS);
  CHECK((Layer{kFloat8, CUDA_R_32F, CUDA_R_32F, CUDA_R_16BF}.heuristics()) == CUBLAS_STATUS_SUCCESS);
  CHECK((Layer{CUDA_R_16F, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF}.heuristics()) ==
        CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK((Layer{CUDA_R_16F, CUDA_R_16F, CUDA_R_16F, CUDA_R_32F}.heuristics()) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK((Layer{kFloat8, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F}.heuristics()) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK((Layer{kFloat8, kFloat8, kFloat8, CUDA_R_16BF}.heuristics()) == CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST(products_of_float8_are_transposed_and_multiples_of_16) {
  Layer layer{CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF};
  CHECK(layer.heuristics() == CUBLAS_STATUS_SUCCESS);
  layer.transposed = CUBLAS_OP_N;
  CHECK(layer.heuristics() == CUBLAS_STATUS_NOT_SUPPORTED);
  layer.transposed = CUBLAS_OP_T;
  layer.stride = 72;
  CHECK(layer.heuristics() == CUBLAS_STATUS_NOT_SUPPORTED);
  layer.stride = 63;
  CHECK(layer.heuristics() == CUBLAS_STATUS_INVALID_VALUE);
  layer.k = 56;
  CHECK(layer.heuristics() == CUBLAS_STATUS_NOT_SUPPORTED);
}

}  // namespace
}  // namespace fct::testing
