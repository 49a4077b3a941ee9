#include "devices.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <string_view>

#include "fct/cuda.h"
#include "fct/error.h"

namespace fct::bindings {
namespace {

constexpr std::string_view kCuda = "cuda";

[[noreturn]] void fail(const std::string& device) {
  throw Error(ErrorKind::kUnsupported,
              "device is " + device + ", wanted cpu, cuda, cuda:N or several like cuda:0,cuda:1");
}

int device_number(std::string_view name, const std::string& device) {
  if (name == kCuda) return 0;
  if (!name.starts_with("cuda:")) fail(device);
  name.remove_prefix(kCuda.size() + 1);
  int number = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc() || end != name.data() + name.size() || number < 0) fail(device);
  return number;
}

}  // namespace

CudaOptions cuda_options(const std::string& device, std::size_t device_memory) {
  CudaOptions options;
  options.devices.clear();
  options.device_memory = device_memory;
  std::istringstream names(device);
  for (std::string name; std::getline(names, name, ',');) {
    const int number = device_number(name, device);
    if (std::count(options.devices.begin(), options.devices.end(), number) > 0) fail(device);
    options.devices.push_back(number);
  }
  if (options.devices.empty() || device.back() == ',') fail(device);
  return options;
}

std::unique_ptr<Engine> make_engine(const std::string& device, std::size_t device_memory) {
  if (device == "cpu") return make_cpu_engine();
  return make_cuda_engine(cuda_options(device, device_memory));
}

}  // namespace fct::bindings
