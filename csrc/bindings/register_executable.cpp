#include <pybind11/stl.h>

#include <array>
#include <map>
#include <optional>

#include "arrays.h"
#include "devices.h"
#include "fct/cuda.h"
#include "fct/error.h"
#include "gil.h"
#include "program_reader.h"
#include "registry.h"

namespace fct::bindings {
namespace {

constexpr std::array kPrecisions{Precision::kFp32, Precision::kTf32, Precision::kFp16,
                                 Precision::kBf16, Precision::kFp8,  Precision::kInt8};

Precision precision_from(const std::string& name, const std::string& device) {
  for (Precision precision : kPrecisions)
    if (name == name_of(precision)) return precision;
  throw Error(ErrorKind::kUnsupported,
              "unknown precision " + name + ", wanted " +
                  (device == "cpu" ? "fp32, bf16 or int8" : "fp32, tf32, fp16, bf16 or fp8"));
}

std::vector<std::string> precisions(const std::string& device) {
  std::vector<std::string> names;
  for (Precision precision : make_engine(device, 0)->precisions()) names.emplace_back(name_of(precision));
  return names;
}

std::unique_ptr<Executable> compile(const py::object& program, const std::string& precision,
                                    const std::string& device, std::size_t device_memory,
                                    const std::optional<std::map<std::string, float>>& ranges) {
  const Precision wanted = precision_from(precision, device);
  const NamedProgram named = read_program(program);
  const Ranges known = read_ranges(ranges.value_or(std::map<std::string, float>{}), named, wanted);
  const GilReleased released;
  return make_engine(device, device_memory)->compile(named.program, wanted, known);
}

py::dict describe(const CudaDeviceInfo& device) {
  using namespace py::literals;
  const std::string capability = std::to_string(device.major) + "." + std::to_string(device.minor);
  return py::dict("index"_a = device.index, "name"_a = device.name, "compute_capability"_a = capability,
                  "memory_bytes"_a = device.memory_bytes, "free_bytes"_a = device.free_bytes);
}

py::dict status() {
  const CudaStatus found = [] {
    const GilReleased released;
    return cuda_status();
  }();
  auto text = [](const std::string& value) {
    return value.empty() ? py::object(py::none()) : py::str(value);
  };
  py::list devices;
  for (const CudaDeviceInfo& device : found.devices) devices.append(describe(device));
  using namespace py::literals;
  return py::dict("built"_a = found.built, "missing"_a = text(found.missing), "devices"_a = devices,
                  "driver"_a = text(found.driver), "cublaslt"_a = text(found.cublaslt));
}

void run_on_device(const Executable& executable, std::uintptr_t old, const std::string& old_dtype,
                   std::uintptr_t side, const std::string& side_dtype, std::uintptr_t out,
                   const std::string& out_dtype, std::int64_t rows, std::uintptr_t stream) {
  const auto* on_device = dynamic_cast<const DeviceExecutable*>(&executable);
  if (on_device == nullptr)
    throw Error(ErrorKind::kUnsupported,
                "rows in device memory need an executable of one device, not of " + executable.device());
  if ((side != 0) != (executable.side_dim() > 0))
    throw Error(ErrorKind::kArray, side != 0 ? "side was given, but this transformation has no second input"
                                             : "side is missing: this transformation has two inputs");
  if (rows < 0 || (rows > 0 && (old == 0 || out == 0)))
    throw Error(ErrorKind::kArray, "rows is negative, or old or out is a null pointer");
  const InputRows old_rows{reinterpret_cast<const void*>(old), dtype_from_name(old_dtype)};
  InputRows side_rows{};
  if (side != 0) side_rows = {reinterpret_cast<const void*>(side), dtype_from_name(side_dtype)};
  const OutputRows out_rows{reinterpret_cast<void*>(out), dtype_from_name(out_dtype)};
  const GilReleased released;
  on_device->run_on_device(old_rows, side_rows, out_rows, rows, reinterpret_cast<void*>(stream));
}

// A view of C++ memory for the time of one call; without an owner pybind11 would copy.
py::array view(const float* data, std::int64_t rows, int width) {
  return py::array(py::dtype::of<float>(), {rows, static_cast<std::int64_t>(width)}, {}, data,
                   py::capsule(data, [](void*) {}));
}

std::unique_ptr<Executable> from_function(const py::function& function, int old_dim, int side_dim,
                                          int new_dim, bool normalize, const std::string& description) {
  if (old_dim < 1 || side_dim < 0 || new_dim < 1)
    throw Error(ErrorKind::kArtifact, "dims must be positive, side_dim may be 0");
  auto call = [=](const float* old, const float* side, float* out, std::int64_t rows) {
    const py::gil_scoped_acquire gil;
    const py::object side_view = side == nullptr ? py::object(py::none()) : view(side, rows, side_dim);
    function(view(old, rows, old_dim), side_view, view(out, rows, new_dim));
  };
  return make_function_executable(call, {old_dim, side_dim, new_dim, normalize, description});
}

void run(const Executable& executable, const py::array& old, const std::optional<py::array>& side,
         py::array& out, int threads) {
  const InputRows old_rows = input_rows(old, "old", executable.old_dim());
  InputRows side_rows{};
  if (side.has_value() != (executable.side_dim() > 0))
    throw Error(ErrorKind::kArray, side.has_value()
                                       ? "side was given, but this transformation has no second input"
                                       : "side is missing: this transformation has two inputs");
  if (side) {
    side_rows = input_rows(*side, "side", executable.side_dim());
    check_rows(*side, "side", old.shape(0));
    check_no_overlap(out, *side, "side");
  }
  const OutputRows out_rows = output_rows(out, executable.new_dim(), old.shape(0));
  check_no_overlap(out, old, "old");
  if (threads < 1)
    throw Error(ErrorKind::kArray, "threads is " + std::to_string(threads) + ", wanted at least 1");
  const std::int64_t rows = old.shape(0);
  const GilReleased released;  // from here on only C++ memory is touched
  executable.run(old_rows, side_rows, out_rows, rows, threads);
}

}  // namespace

void register_executable(py::module_& m) {
  m.def("precisions", &precisions, py::arg("device") = "cpu",
        "Precisions the device runs natively, slowest first.");
  m.def("cpu_instruction_set", &cpu_instruction_set,
        "What linear layers are computed with on the CPU, as ONEDNN_MAX_CPU_ISA spells it: AVX2.");
  m.def("cpu_int8_weight_bits", &cpu_int8_weight_bits,
        "Bits of int8's weights on this CPU: 8; 7 where sums of larger ones saturate; 0: it has no int8.");
  m.def("cuda_status", &status, "Which devices can be used, or what is missing; never raises.");
  py::class_<Executable>(m, "Executable", "A program compiled for one device, or for several devices.")
      .def(py::init(&compile), py::arg("program"), py::arg("precision"), py::kw_only(),
           py::arg("device") = "cpu", py::arg("device_memory") = 0, py::arg("ranges") = py::none())
      .def_static(
          "from_function", &from_function, py::arg("function"), py::kw_only(), py::arg("old_dim"),
          py::arg("side_dim"), py::arg("new_dim"), py::arg("normalize"), py::arg("description"),
          "Another runtime: function(old, side or None, out) fills out; all float32 views, valid only "
          "during the call.")
      .def("run", &run, py::arg("old"), py::arg("side").none(true), py::arg("out"), py::arg("threads"))
      .def("run_on_device", &run_on_device, py::arg("old"), py::arg("old_dtype"), py::arg("side"),
           py::arg("side_dtype"), py::arg("out"), py::arg("out_dtype"), py::arg("rows"), py::arg("stream"),
           "Rows in device memory by address (side 0 if there is none), enqueued on a stream; does not wait. "
           "A "
           "row whose input or result is not finite comes out as NaN.")
      .def_property_readonly("old_dim", &Executable::old_dim)
      .def_property_readonly("side_dim", &Executable::side_dim)
      .def_property_readonly("new_dim", &Executable::new_dim)
      .def_property_readonly("precision", [](const Executable& self) { return name_of(self.precision()); })
      .def_property_readonly("device", &Executable::device)
      .def_property_readonly("device_bytes", &Executable::device_bytes)
      .def_property_readonly("description", &Executable::description);
}

}  // namespace fct::bindings
