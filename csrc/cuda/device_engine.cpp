#include "device_engine.h"

#include <algorithm>

#include "cuda_executable.h"
#include "multi_executable.h"

namespace fct::cuda {
namespace {

int capability(const CudaDeviceInfo& device) { return 10 * device.major + device.minor; }

constexpr int kOldest = 80;  // what kernels are compiled for; has tf32, fp16 and bf16
constexpr int kOldestFloat8 = 89;

std::string describe(const CudaDeviceInfo& device) {
  return "cuda:" + std::to_string(device.index) + " (" + device.name + ", compute capability " +
         std::to_string(device.major) + "." + std::to_string(device.minor) + ")";
}

void check(const std::vector<SharedDevice>& devices) {
  if (devices.empty()) throw Error(ErrorKind::kUnsupported, "no CUDA device was named");
  const CudaDeviceInfo first = devices.front()->info();
  for (const SharedDevice& device : devices) {
    const CudaDeviceInfo info = device->info();
    check_new_enough(info);
    if (info.name != first.name)
      throw Error(ErrorKind::kUnsupported, describe(first) + " and " + describe(info) +
                                               " cannot work on one gallery: their results differ in the "
                                               "last bits");
  }
}

class DeviceEngine : public Engine {
 public:
  DeviceEngine(std::vector<SharedDevice> devices, std::size_t device_memory)
      : devices_(std::move(devices)), device_memory_(device_memory) {
    check(devices_);
  }

  std::vector<Precision> precisions() const override {
    std::vector<Precision> native{Precision::kFp32, Precision::kTf32, Precision::kFp16, Precision::kBf16};
    if (capability(devices_.front()->info()) >= kOldestFloat8) native.push_back(Precision::kFp8);
    return native;
  }

  std::unique_ptr<Executable> compile(const Program& program, Precision precision,
                                      const Ranges& ranges) const override {
    validate(program);
    const auto native = precisions();
    if (precision == Precision::kInt8)
      throw Error(ErrorKind::kUnsupported,
                  "an NVIDIA device computes in fp32, tf32, fp16, bf16 or fp8, not in int8");
    if (std::find(native.begin(), native.end(), precision) == native.end())
      throw Error(ErrorKind::kUnsupported, std::string("precision ") + name_of(precision) +
                                               " needs compute capability 8.9 or newer, not " +
                                               describe(devices_.front()->info()));
    std::vector<std::unique_ptr<Executable>> executables;
    for (const SharedDevice& device : devices_)
      executables.push_back(
          std::make_unique<CudaExecutable>(device, program, precision, ranges, device_memory_));
    if (executables.size() == 1) return std::move(executables.front());
    return std::make_unique<MultiExecutable>(std::move(executables));
  }

 private:
  std::vector<SharedDevice> devices_;
  std::size_t device_memory_;
};

}  // namespace

void check_new_enough(const CudaDeviceInfo& device) {
  if (capability(device) < kOldest)
    throw Error(ErrorKind::kUnsupported, describe(device) + " is too old: 8.0 or newer is needed");
}

std::unique_ptr<Engine> make_device_engine(std::vector<SharedDevice> devices, std::size_t device_memory) {
  return std::make_unique<DeviceEngine>(std::move(devices), device_memory);
}

}  // namespace fct::cuda
