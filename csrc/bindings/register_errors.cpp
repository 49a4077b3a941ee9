#include <system_error>

#include "fct/error.h"
#include "registry.h"

namespace fct::bindings {
namespace {

namespace py = pybind11;

const char* class_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kArray:
      return "ArrayError";
    case ErrorKind::kArtifact:
      return "ArtifactError";
    case ErrorKind::kUnsupported:
      return "UnsupportedError";
    case ErrorKind::kResource:
      return "ResourceError";
    case ErrorKind::kDeviceMemory:
      return "DeviceMemoryError";
  }
  return "FctError";
}

void raise(const char* name, const py::tuple& arguments) {
  const py::object type = py::module_::import("fct_infer.errors").attr(name);
  PyErr_SetObject(type.ptr(), type(*arguments).ptr());
}

}  // namespace

void register_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const NonFiniteRow& error) {
      raise("NonFiniteError", py::make_tuple(error.array(), error.row()));
    } catch (const Error& error) {
      raise(class_of(error.kind()), py::make_tuple(error.what()));
    } catch (const std::system_error& error) {  // no more threads, for one
      raise("ResourceError", py::make_tuple(std::string("the system refuses: ") + error.what()));
    }
  });
}

}  // namespace fct::bindings
