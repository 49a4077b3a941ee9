#include "program_reader.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>

#include "fct/error.h"

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

  NamedProgram take() { return {std::move(program_), std::move(ids_)}; }

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

}  // namespace

NamedProgram read_program(const py::object& program) { return ProgramReader(program).take(); }

Ranges read_ranges(const std::map<std::string, float>& ranges, const NamedProgram& named,
                   Precision precision) {
  Ranges read;
  for (const auto& [name, range] : ranges) {
    const auto found = named.ids.find(name);
    if (found == named.ids.end()) throw Error(ErrorKind::kArray, "ranges: the program has no value " + name);
    if (!std::isfinite(range) || range < 0)
      throw Error(ErrorKind::kArray,
                  "ranges: " + name + " is " + std::to_string(range) + ", wanted at least 0");
    read[found->second] = range;
  }
  if (!needs_ranges(precision)) return read;
  for (ValueId value : linear_inputs(named.program))
    for (const auto& [name, id] : named.ids)
      if (id == value && read.count(id) == 0)
        throw Error(ErrorKind::kArray, "ranges: " + std::string(name_of(precision)) +
                                           " needs the largest absolute value of " + name);
  return read;
}

}  // namespace fct::bindings
