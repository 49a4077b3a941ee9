// The engine over devices behind the seam, whoever makes them.
#pragma once

#include <memory>
#include <vector>

#include "device_handles.h"
#include "fct/cuda.h"
#include "fct/engine.h"

namespace fct::cuda {

// Throws Error(kUnsupported) if there is no device, one is too old, or they are of different models, because
// a row would then have other bytes on another device.
std::unique_ptr<Engine> make_device_engine(std::vector<SharedDevice> devices, std::size_t device_memory);

// Throws Error(kUnsupported) if it is none that kernels are compiled for.
void check_new_enough(const CudaDeviceInfo& device);

}  // namespace fct::cuda
