#include "context.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <string>

#include "check.h"

namespace fct::cuda {
namespace {

constexpr unsigned kInterface = 12000;  // of the functions below; all are older

template <typename Function>
Function entry(const char* name) {
  void* found = nullptr;
  auto status = cudaDriverEntryPointSymbolNotFound;
  FCT_CHECK(cudaGetDriverEntryPointByVersion(name, &found, kInterface, cudaEnableDefault, &status));
  if (status != cudaDriverEntryPointSuccess || found == nullptr)
    throw Error(ErrorKind::kUnsupported, std::string("the NVIDIA driver has no ") + name);
  return reinterpret_cast<Function>(found);
}

// Found by name, as libcuda.so is there only where a driver is.
struct Driver {
  PFN_cuGetErrorName_v6000 error_name = entry<PFN_cuGetErrorName_v6000>("cuGetErrorName");
  PFN_cuDeviceGet_v2000 device = entry<PFN_cuDeviceGet_v2000>("cuDeviceGet");
  PFN_cuDeviceGetName_v2000 name = entry<PFN_cuDeviceGetName_v2000>("cuDeviceGetName");
  PFN_cuDeviceGetAttribute_v2000 attribute = entry<PFN_cuDeviceGetAttribute_v2000>("cuDeviceGetAttribute");
  PFN_cuDeviceTotalMem_v3020 total_memory = entry<PFN_cuDeviceTotalMem_v3020>("cuDeviceTotalMem");
  PFN_cuMemGetInfo_v3020 free_memory = entry<PFN_cuMemGetInfo_v3020>("cuMemGetInfo");
  PFN_cuDevicePrimaryCtxGetState_v7000 state =
      entry<PFN_cuDevicePrimaryCtxGetState_v7000>("cuDevicePrimaryCtxGetState");
  PFN_cuDevicePrimaryCtxRetain_v7000 retain =
      entry<PFN_cuDevicePrimaryCtxRetain_v7000>("cuDevicePrimaryCtxRetain");
  PFN_cuCtxPushCurrent_v4000 push = entry<PFN_cuCtxPushCurrent_v4000>("cuCtxPushCurrent");
  PFN_cuCtxPopCurrent_v4000 pop = entry<PFN_cuCtxPopCurrent_v4000>("cuCtxPopCurrent");

  Driver() { check(entry<PFN_cuInit_v2000>("cuInit")(0), "cuInit"); }

  void check(CUresult status, const char* what) const {
    if (status == CUDA_SUCCESS) return;
    const char* text = nullptr;
    if (error_name(status, &text) != CUDA_SUCCESS) text = "unknown error";
    const std::string message = std::string(what) + ": " + text;
    if (status == CUDA_ERROR_OUT_OF_MEMORY) throw OutOfDeviceMemory(message);
    throw Error(ErrorKind::kResource, message);
  }
};

const Driver& driver() {
  static const Driver loaded;
  return loaded;
}

#define FCT_CHECK_DRIVER(function, ...) \
  driver().check(driver().function(__VA_ARGS__), "CUDA driver: " #function)

CUdevice device_at(int index) {
  CUdevice device = 0;
  FCT_CHECK_DRIVER(device, &device, index);
  return device;
}

int attribute_of(CUdevice device, CUdevice_attribute attribute) {
  int value = 0;
  FCT_CHECK_DRIVER(attribute, &value, attribute, device);
  return value;
}

}  // namespace

CUcontext primary_context(int index) {
  CUcontext context = nullptr;
  FCT_CHECK_DRIVER(retain, &context, device_at(index));
  return context;
}

InContext::InContext(CUcontext context) { FCT_CHECK_DRIVER(push, context); }
InContext::~InContext() {
  CUcontext ours = nullptr;
  (void)driver().pop(&ours);
}

CudaDeviceInfo describe(int index) {
  const CUdevice device = device_at(index);
  char name[256] = {};
  FCT_CHECK_DRIVER(name, name, sizeof name, device);
  CudaDeviceInfo info{.index = index, .name = name};
  info.major = attribute_of(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  info.minor = attribute_of(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  FCT_CHECK_DRIVER(total_memory, &info.memory_bytes, device);
  unsigned flags = 0;
  int is_active = 0;
  FCT_CHECK_DRIVER(state, device, &flags, &is_active);
  if (is_active == 0) return info;
  const InContext guard(primary_context(index));
  std::size_t free = 0, total = 0;
  FCT_CHECK_DRIVER(free_memory, &free, &total);
  info.free_bytes = free;
  return info;
}

}  // namespace fct::cuda
