// NumPy arrays at the border: everything is checked here, before any work and while the GIL is held.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "fct/engine.h"

namespace fct::bindings {

namespace py = pybind11;

DType dtype_from_name(const std::string& name);  // "float32" or "float16"
py::dtype numpy_dtype(DType dtype);

// Checks that `array` is (n, width), float32 or float16, C-contiguous and aligned; throws Error(kArray)
// naming it otherwise.
InputRows input_rows(const py::array& array, const char* name, int width);

// The same, for an array that is written: it must be writeable and share no memory with the inputs.
OutputRows output_rows(py::array& array, int width, std::int64_t rows);

void check_rows(const py::array& array, const char* name, std::int64_t rows);
void check_no_overlap(const py::array& written, const py::array& read, const char* read_name);

}  // namespace fct::bindings
