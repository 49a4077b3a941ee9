#include <pybind11/stl.h>

#include <map>

#include "arrays.h"
#include "fct/error.h"
#include "registry.h"

namespace fct::bindings {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

Activation activation_from(const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  throw Error(ErrorKind::kArtifact, "unknown activation " + name);
}

std::vector<float> values_of(const py::handle& array) {
  if (!FloatArray::check_(array))
    throw Error(ErrorKind::kArtifact, "weights must be C-contiguous float32 arrays");
  const auto values = py::reinterpret_borrow<FloatArray>(array);
  return {values.data(), values.data() + values.size()};
}

// Names become numbers; the steps are the attributes of fct_infer.transformation's dataclasses.
class ProgramReader {
 public:
  explicit ProgramReader(const py::object& program) {
    for (const auto& [name, width] : program.attr("widths").cast<std::map<std::string, int>>()) {
      ids_[name] = static_cast<ValueId>(program_.widths.size());
      program_.widths.push_back(width);
    }
    program_.old = id("old");
    if (program.attr("dims").contains("side")) program_.side = id("side");
    program_.output = id(program.attr("output").cast<std::string>());
    for (const py::handle step : program.attr("steps")) program_.steps.push_back(read(step));
  }

  Program take() { return std::move(program_); }

 private:
  ValueId id(const std::string& name) const {
    const auto found = ids_.find(name);
    if (found == ids_.end()) throw Error(ErrorKind::kArtifact, "unknown value " + name);
    return found->second;
  }

  ValueId value(const py::handle& step, const char* attribute) const {
    return id(step.attr(attribute).cast<std::string>());
  }

  Step read(const py::handle& step) const {
    const auto kind = py::type::of(step).attr("__name__").cast<std::string>();
    if (kind == "Linear")
      return Linear{value(step, "input"), value(step, "output"), values_of(step.attr("weight")),
                    values_of(step.attr("bias")),
                    activation_from(step.attr("activation").cast<std::string>())};
    if (kind == "Normalize") return Normalize{value(step, "input"), value(step, "output")};
    std::vector<ValueId> inputs;
    for (const py::handle name : step.attr("inputs")) inputs.push_back(id(name.cast<std::string>()));
    if (kind == "Concat") return Concat{inputs, value(step, "output")};
    if (kind == "Add" && inputs.size() == 2) return Add{inputs[0], inputs[1], value(step, "output")};
    throw Error(ErrorKind::kArtifact, "unknown step " + kind);
  }

  std::map<std::string, ValueId> ids_;
  Program program_;
};

std::string name_of(Precision precision) { return precision == Precision::kFp32 ? "fp32" : "bf16"; }

std::vector<std::string> precisions() {
  std::vector<std::string> names;
  for (Precision precision : make_cpu_engine()->precisions()) names.push_back(name_of(precision));
  return names;
}

std::unique_ptr<Executable> compile(const py::object& program, const std::string& precision) {
  if (precision != "fp32" && precision != "bf16")
    throw Error(ErrorKind::kUnsupported, "unknown precision " + precision + ", wanted fp32 or bf16");
  const Program read = ProgramReader(program).take();
  const py::gil_scoped_release release;
  return make_cpu_engine()->compile(read, precision == "fp32" ? Precision::kFp32 : Precision::kBf16);
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
  const py::gil_scoped_release release;  // from here on only C++ memory is touched
  executable.run(old_rows, side_rows, out_rows, rows, threads);
}

}  // namespace

void register_executable(py::module_& m) {
  m.def("precisions", &precisions, "Precisions this CPU runs natively, slowest first.");
  py::class_<Executable>(m, "Executable", "A program compiled for this CPU.")
      .def(py::init(&compile), py::arg("program"), py::arg("precision"))
      .def_static(
          "from_function", &from_function, py::arg("function"), py::kw_only(), py::arg("old_dim"),
          py::arg("side_dim"), py::arg("new_dim"), py::arg("normalize"), py::arg("description"),
          "Another runtime: function(old, side or None, out) fills out; all float32 views, valid only "
          "during the call.")
      .def("run", &run, py::arg("old"), py::arg("side").none(true), py::arg("out"), py::arg("threads"))
      .def_property_readonly("old_dim", &Executable::old_dim)
      .def_property_readonly("side_dim", &Executable::side_dim)
      .def_property_readonly("new_dim", &Executable::new_dim)
      .def_property_readonly("precision", [](const Executable& self) { return name_of(self.precision()); })
      .def_property_readonly("description", &Executable::description);
}

}  // namespace fct::bindings
