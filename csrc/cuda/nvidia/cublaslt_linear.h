// Linear layers by cuBLASLt's matrix product: bias and ReLU as its epilogue, weights resident on the device.
#pragma once

#include <cublasLt.h>

#include <memory>

#include "cuda/device.h"

namespace fct::cuda {

// Null if cuBLASLt has no kernel that does the layer as one operation.
std::unique_ptr<PreparedLinear> make_cublaslt_linear(cublasLtHandle_t handle, const LinearSpec& spec);

}  // namespace fct::cuda
