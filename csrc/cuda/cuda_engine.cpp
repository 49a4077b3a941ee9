// Finds the CUDA part, a library of its own beside the core, so that the core loads on machines without a
// driver or without cuBLASLt.
#include <dlfcn.h>

#include <filesystem>

#include "device_assigner.h"
#include "device_engine.h"
#include "fct/cuda.h"

namespace fct {
namespace {

using cuda::Platform;

constexpr const char* kLibrary = "libfct_cuda.so";

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::kUnsupported, message); }

std::filesystem::path library_path() {
  Dl_info here{};
  if (dladdr(reinterpret_cast<const void*>(&library_path), &here) == 0 || here.dli_fname == nullptr)
    fail("the core's own folder cannot be found");
  return std::filesystem::path(here.dli_fname).parent_path() / kLibrary;
}

bool is_built() {
  std::error_code ignored;
  return std::filesystem::exists(library_path(), ignored);
}

std::string last_error() {
  const char* message = dlerror();
  return message == nullptr ? "unknown error" : message;
}

// Loaded once and never unloaded: devices and memory refer to its code.
Platform& platform() {
  static Platform& loaded = []() -> Platform& {
    if (!is_built()) fail("this build of fct_infer has no CUDA part; rebuild it where nvcc is (FCT_CUDA=ON)");
    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) == nullptr)
      fail("no NVIDIA driver: libcuda.so.1 was not found");
    void* library = dlopen(library_path().c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const std::string why = last_error();
      if (why.find("libcublasLt") != std::string::npos)
        fail("cuBLASLt was not found: pip install nvidia-cublas (" + why + ")");
      fail("the CUDA part cannot be loaded: " + why);
    }
    void* symbol = dlsym(library, cuda::kPlatformSymbol);
    if (symbol == nullptr) fail("the CUDA part is of another version: " + last_error());
    return reinterpret_cast<cuda::PlatformFunction>(symbol)();
  }();
  return loaded;
}

int count_devices() {
  const int count = platform().count();
  if (count == 0) fail("no CUDA device was found");
  return count;
}

std::vector<cuda::SharedDevice> open_devices(const CudaOptions& options) {
  const int count = count_devices();
  std::vector<cuda::SharedDevice> devices;
  for (int index : options.devices) {
    if (index < 0 || index >= count)
      fail("there is no cuda:" + std::to_string(index) + "; devices found: " + std::to_string(count));
    devices.push_back(platform().open(index));
  }
  return devices;
}

}  // namespace

std::unique_ptr<Engine> make_cuda_engine(const CudaOptions& options) {
  return cuda::make_device_engine(open_devices(options), options.device_memory);
}

std::unique_ptr<Assigner> make_cuda_assigner(std::optional<Centroids> centroids,
                                             std::optional<Codebooks> codebooks, const CudaOptions& options) {
  return cuda::make_device_assigner(open_devices(options), centroids, codebooks, options.device_memory);
}

CudaStatus cuda_status() noexcept {
  CudaStatus status;
  try {
    status.built = is_built();
    status.driver = platform().driver_version();
    status.cublaslt = platform().cublaslt_version();
    count_devices();
    status.devices = platform().devices();
  } catch (const std::exception& error) {
    status.missing = error.what();
  }
  return status;
}

}  // namespace fct
