// Every call to the CUDA libraries goes through one of these.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <string>

#include "cuda/device.h"

namespace fct::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // an error that is not sticky must not meet the next caller
  const std::string message =
      std::string(what) + ": " + cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ")";
  if (status == cudaErrorMemoryAllocation) throw OutOfDeviceMemory(message);
  throw Error(ErrorKind::kResource, message);
}

inline void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string message = std::string(what) + ": " + cublasLtGetStatusName(status);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfDeviceMemory(message);
  throw Error(ErrorKind::kResource, message);
}

#define FCT_CHECK(call) ::fct::cuda::check(call, #call)

}  // namespace fct::cuda
