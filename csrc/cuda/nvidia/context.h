// Contexts of devices, by the driver. The runtime's own calls would leave one behind on device 0, which costs
// memory there, whenever a thread that has none is put back to what it was.
#pragma once

#include <cuda.h>

#include "fct/cuda.h"

namespace fct::cuda {

// A device's primary context, the one that the runtime and other libraries use. Made where there is none, and
// never given back, as the runtime does not: what it has loaded there would be lost.
CUcontext primary_context(int index);

// Which context calls go to is a setting of each thread, and the thread is the caller's: put back as it was.
class InContext {
 public:
  explicit InContext(CUcontext context);
  ~InContext();
  InContext(const InContext&) = delete;
  InContext& operator=(const InContext&) = delete;
};

// What is known about a device without a context; its free memory only if this process has one there.
CudaDeviceInfo describe(int index);

}  // namespace fct::cuda
