// "cpu", "cuda", "cuda:1", "cuda:0,cuda:1": devices by name.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "fct/cuda.h"
#include "fct/engine.h"

namespace fct::bindings {

// `device_memory`: bytes on each device; 0: most of what is free. Throws Error(kUnsupported) if there is no
// such device.
std::unique_ptr<Engine> make_engine(const std::string& device, std::size_t device_memory);

// Of CUDA devices alone.
CudaOptions cuda_options(const std::string& device, std::size_t device_memory);

}  // namespace fct::bindings
