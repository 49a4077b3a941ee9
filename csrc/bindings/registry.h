#pragma once

#include <pybind11/pybind11.h>

namespace fct::bindings {

void register_errors(pybind11::module_& m);
void register_executable(pybind11::module_& m);
void register_pipeline(pybind11::module_& m);
void register_assign(pybind11::module_& m);

}  // namespace fct::bindings
