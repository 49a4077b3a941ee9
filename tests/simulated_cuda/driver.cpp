// The driver's calls, and how the runtime hands them out by name.
#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>

#include "simulated_device.h"

using namespace simulated;

namespace {

bool is_device(CUdevice device) { return device >= 0 && device < device_count(); }
bool is_initialized = false;

}  // namespace

extern "C" {

CUresult cuInit(unsigned flags) {
  is_initialized = true;
  return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  static const std::map<CUresult, const char*> names{
      {CUDA_SUCCESS, "CUDA_SUCCESS"},
      {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
      {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
      {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}};
  const auto found = names.find(error);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (!is_initialized) return CUDA_ERROR_NOT_INITIALIZED;
  *device = ordinal;
  return is_device(ordinal) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  if (!is_device(device) || length <= 0) return CUDA_ERROR_INVALID_VALUE;
  std::strncpy(name, "simulated device", static_cast<std::size_t>(length) - 1);
  name[length - 1] = 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
    *value = compute_capability() / 10;
  else if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
    *value = compute_capability() % 10;
  else
    return CUDA_ERROR_INVALID_VALUE;
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(std::size_t* bytes, CUdevice device) {
  *bytes = device_memory();
  return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

// FCT_SIMULATED_FREE is the most that is reported as free, which makes the blocks of rows small.
CUresult cuMemGetInfo(std::size_t* free, std::size_t* total) {
  const std::lock_guard lock(mutex());
  if (current() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *total = device_memory();
  *free =
      std::min<std::uint64_t>(*total - used_memory(current()->device), setting("FCT_SIMULATED_FREE", *total));
  return CUDA_SUCCESS;
}

// For tests: what is free in truth.
std::size_t simulated_free_memory(int device) {
  const std::lock_guard lock(mutex());
  return device_memory() - used_memory(device);
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  *flags = 0;
  *active = primary_context(device)->retained > 0 ? 1 : 0;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  const std::lock_guard lock(mutex());
  if (!is_initialized) return CUDA_ERROR_NOT_INITIALIZED;
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  *context = primary_context(device);
  ++(*context)->retained;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  const std::lock_guard lock(mutex());
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  if (primary_context(device)->retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (--primary_context(device)->retained == 0) violation("a context was destroyed; what is on it is lost");
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  push_current(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  *context = current();
  return pop_current() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current();
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  const std::lock_guard lock(mutex());
  const int device = device_of(reinterpret_cast<const void*>(pointer), 1);
  if (device < 0 || attribute != CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) return CUDA_ERROR_INVALID_VALUE;
  *static_cast<int*>(data) = device;
  return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
  if (current() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return static_cast<CUresult>(cudaStreamSynchronize(stream));  // both count errors alike
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long, cudaDriverEntryPointQueryResult* status) {
#define ENTRY(name) \
  {#name, reinterpret_cast<void*>(&name)}  // a macro for the newest version, but not in #name
  static const std::map<std::string_view, void*> entries{ENTRY(cuInit),
                                                         ENTRY(cuGetErrorName),
                                                         ENTRY(cuDeviceGet),
                                                         ENTRY(cuDeviceGetName),
                                                         ENTRY(cuDeviceGetAttribute),
                                                         ENTRY(cuDeviceTotalMem),
                                                         ENTRY(cuMemGetInfo),
                                                         ENTRY(cuDevicePrimaryCtxGetState),
                                                         ENTRY(cuDevicePrimaryCtxRetain),
                                                         ENTRY(cuCtxPushCurrent),
                                                         ENTRY(cuCtxPopCurrent)};
#undef ENTRY
  const auto found = entries.find(symbol);
  *function = found == entries.end() ? nullptr : found->second;
  *status = found == entries.end() ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // extern "C"
