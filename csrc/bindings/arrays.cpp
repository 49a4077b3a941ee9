#include "arrays.h"

#include "fct/error.h"

namespace fct::bindings {
namespace {

std::string describe(const py::array& array) {
  return py::str("{} array of shape {}").format(array.dtype(), array.attr("shape")).cast<std::string>();
}

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::kArray, message); }

DType check(const py::array& array, const char* name, int width) {
  const std::string wanted =
      ", wanted a C-contiguous float32 or float16 array of shape (n, " + std::to_string(width) + ")";
  const bool is_float =
      array.dtype().is(py::dtype::of<float>()) || array.dtype().equal(py::dtype::of<float>());
  const bool is_half = array.dtype().equal(py::dtype("float16"));
  if (!is_float && !is_half) fail(std::string(name) + " is a " + describe(array) + wanted);
  if (array.ndim() != 2 || array.shape(1) != width)
    fail(std::string(name) + " is a " + describe(array) + wanted);
  if ((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0)
    fail(std::string(name) + " is a " + describe(array) + " at an address that does not suit its dtype" +
         wanted);
  if ((array.flags() & py::array::c_style) == 0)
    fail(std::string(name) + " is a " + describe(array) + " that is not C-contiguous" + wanted);
  return is_float ? DType::kFloat32 : DType::kFloat16;
}

}  // namespace

DType dtype_from_name(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float16") return DType::kFloat16;
  fail("dtype is " + name + ", wanted float32 or float16");
}

py::dtype numpy_dtype(DType dtype) { return py::dtype(dtype == DType::kFloat32 ? "float32" : "float16"); }

InputRows input_rows(const py::array& array, const char* name, int width) {
  const DType dtype = check(array, name, width);
  return {array.data(), dtype};
}

OutputRows output_rows(py::array& array, int width, std::int64_t rows) {
  const DType dtype = check(array, "out", width);
  if (!array.writeable()) fail("out is read-only");
  check_rows(array, "out", rows);
  return {array.mutable_data(), dtype};
}

void check_rows(const py::array& array, const char* name, std::int64_t rows) {
  if (array.shape(0) != rows)
    fail(std::string(name) + " has " + std::to_string(array.shape(0)) + " rows, old has " +
         std::to_string(rows));
}

void check_no_overlap(const py::array& written, const py::array& read, const char* read_name) {
  const auto* first = static_cast<const char*>(written.data());
  const auto* second = static_cast<const char*>(read.data());
  if (first < second + read.nbytes() && second < first + written.nbytes())
    fail(std::string("out shares memory with ") + read_name);
}

}  // namespace fct::bindings
