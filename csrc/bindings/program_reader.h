// fct_infer.transformation.Program as the core's Program.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <string>

#include "fct/engine.h"
#include "fct/program.h"

namespace fct::bindings {

namespace py = pybind11;

struct NamedProgram {
  Program program;
  std::map<std::string, ValueId> ids;  // names become numbers
};

// Throws Error(kArtifact) if it is malformed.
NamedProgram read_program(const py::object& program);

// The ranges of named values, complete if the precision needs them: throws Error(kArray) naming the value
// that is unknown, not a finite number of at least 0, or missing.
Ranges read_ranges(const std::map<std::string, float>& ranges, const NamedProgram& named,
                   Precision precision);

}  // namespace fct::bindings
