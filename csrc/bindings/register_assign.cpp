#include <pybind11/stl.h>

#include "arrays.h"
#include "devices.h"
#include "fct/assign.h"
#include "fct/cuda.h"
#include "fct/error.h"
#include "gil.h"
#include "registry.h"

namespace fct::bindings {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::kArray, message); }

FloatArray floats(const py::object& object, const char* name, int ndim) {
  if (!FloatArray::check_(object) || py::reinterpret_borrow<py::array>(object).ndim() != ndim)
    fail(std::string(name) + " must be a C-contiguous float32 array with " + std::to_string(ndim) + " axes");
  return py::reinterpret_borrow<FloatArray>(object);
}

std::vector<float> values_of(const FloatArray& array) { return {array.data(), array.data() + array.size()}; }

Metric metric_from_name(const std::string& name) {
  if (name == "l2") return Metric::kL2;
  if (name == "ip") return Metric::kInnerProduct;
  fail("metric is " + name + ", wanted l2 or ip");
}

Centroids centroids_from(const py::object& object, const std::string& metric) {
  const FloatArray array = floats(object, "centroids", 2);
  return {static_cast<int>(array.shape(0)), static_cast<int>(array.shape(1)), metric_from_name(metric),
          values_of(array)};
}

Codebooks codebooks_from(const py::object& object, bool by_residual) {
  const FloatArray array = floats(object, "codebooks", 3);
  if (array.shape(1) != Codebooks::kEntries)
    fail("codebooks have " + std::to_string(array.shape(1)) + " entries, wanted " +
         std::to_string(Codebooks::kEntries));
  return {static_cast<int>(array.shape(0)), static_cast<int>(array.shape(2)), by_residual, values_of(array)};
}

// (centers, probes) or None.
std::optional<Groups> groups_from(const py::object& object) {
  if (object.is_none()) return std::nullopt;
  const auto [centers, probes] = object.cast<std::pair<py::object, int>>();
  const FloatArray array = floats(centers, "centers", 2);
  return Groups{static_cast<int>(array.shape(0)), probes, values_of(array)};
}

// An array (count, dim) or None.
std::optional<Directions> directions_from(const py::object& object) {
  if (object.is_none()) return std::nullopt;
  const FloatArray array = floats(object, "directions", 2);
  return Directions{static_cast<int>(array.shape(0)), static_cast<int>(array.shape(1)), values_of(array)};
}

std::unique_ptr<Assigner> make(const py::object& centroids, const py::object& codebooks,
                               const std::string& metric, bool by_residual, std::optional<bool> reduced,
                               const py::object& groups, const py::object& directions) {
  std::optional<Centroids> lists;
  std::optional<Codebooks> books;
  if (!centroids.is_none()) lists = centroids_from(centroids, metric);
  if (!codebooks.is_none()) books = codebooks_from(codebooks, by_residual);
  const std::optional<Groups> levels = groups_from(groups);
  const std::optional<Directions> leading = directions_from(directions);
  const GilReleased released;
  return make_assigner(std::move(lists), std::move(books), reduced.value_or(prefers_reduced_assignment()),
                       levels, leading);
}

const float* float_rows(const py::array& rows, int dim, int threads) {
  const InputRows input = input_rows(rows, "rows", dim);
  if (input.dtype != DType::kFloat32) fail("rows are float16, wanted float32");
  if (threads < 1) fail("threads is " + std::to_string(threads) + ", wanted at least 1");
  return static_cast<const float*>(input.data);
}

// Calls work(lists, codes) without the GIL: where those of `count` rows go, null for what there is none of.
template <typename Work>
py::tuple assigned(const Assigner& assigner, std::int64_t count, const Work& work) {
  py::object lists = py::none(), codes = py::none();
  std::int64_t* list_data = nullptr;
  std::uint8_t* code_data = nullptr;
  if (assigner.has_centroids()) {
    py::array_t<std::int64_t> array(count);
    list_data = array.mutable_data();
    lists = std::move(array);
  }
  if (assigner.parts() > 0) {
    py::array_t<std::uint8_t> array({count, static_cast<std::int64_t>(assigner.parts())});
    code_data = array.mutable_data();
    codes = std::move(array);
  }
  {
    const GilReleased released;
    work(list_data, code_data);
  }
  return py::make_tuple(lists, codes);
}

py::tuple assign(const Assigner& assigner, const py::array& rows, int threads) {
  const float* data = float_rows(rows, assigner.dim(), threads);
  const std::int64_t count = rows.shape(0);
  return assigned(assigner, count, [&](std::int64_t* lists, std::uint8_t* codes) {
    assigner.assign(data, count, threads, lists, codes);
  });
}

std::unique_ptr<Assigner> make_on_device(const py::object& centroids, const py::object& codebooks,
                                         const std::string& device, const std::string& metric,
                                         bool by_residual, std::size_t device_memory) {
  std::optional<Centroids> lists;
  std::optional<Codebooks> books;
  if (!centroids.is_none()) lists = centroids_from(centroids, metric);
  if (!codebooks.is_none()) books = codebooks_from(codebooks, by_residual);
  const CudaOptions options = cuda_options(device, device_memory);
  const GilReleased released;
  return make_cuda_assigner(std::move(lists), std::move(books), options);
}

const DeviceAssigner* on_device(const Assigner& assigner) {
  return dynamic_cast<const DeviceAssigner*>(&assigner);
}

py::tuple assign_on_device(const Assigner& assigner, std::uintptr_t rows, std::int64_t count) {
  const DeviceAssigner* there = on_device(assigner);
  if (there == nullptr) fail("rows in device memory need an assigner of one device");
  if (count < 0) fail("there are " + std::to_string(count) + " rows");
  return assigned(assigner, count, [&](std::int64_t* lists, std::uint8_t* codes) {
    there->assign_on_device(reinterpret_cast<const float*>(rows), count, lists, codes);
  });
}

std::uintptr_t stream_of(const Assigner& assigner) {
  const DeviceAssigner* there = on_device(assigner);
  return there == nullptr ? 0 : reinterpret_cast<std::uintptr_t>(there->stream());
}

std::string device_of(const Assigner& assigner) {
  const DeviceAssigner* there = on_device(assigner);
  return there == nullptr ? "" : there->device();
}

std::string description_of(const Assigner& assigner) {
  const DeviceAssigner* there = on_device(assigner);
  return there == nullptr ? "" : there->description();
}

std::size_t device_bytes_of(const Assigner& assigner) {
  const DeviceAssigner* there = on_device(assigner);
  return there == nullptr ? 0 : there->device_bytes();
}

py::array refined_centroids(const py::array& rows, const py::object& centroids, const std::string& metric,
                            bool spherical, int iterations, int threads, const py::object& groups,
                            const py::object& directions) {
  Centroids lists = centroids_from(centroids, metric);
  const float* data = float_rows(rows, lists.dim, threads);
  const std::int64_t count = rows.shape(0);
  const std::optional<Groups> levels = groups_from(groups);
  const std::optional<Directions> leading = directions_from(directions);
  {
    const GilReleased released;
    lists = refine_centroids(data, count, std::move(lists), spherical, iterations, threads, levels, leading);
  }
  return FloatArray({lists.count, lists.dim}, lists.values.data());
}

py::array refined_codebooks(const py::array& rows, const py::object& codebooks, int iterations, int threads) {
  Codebooks books = codebooks_from(codebooks, false);
  const float* data = float_rows(rows, books.parts * books.part_dim, threads);
  const std::int64_t count = rows.shape(0);
  {
    const GilReleased released;
    books = refine_codebooks(data, count, std::move(books), iterations, threads);
  }
  return FloatArray({books.parts, Codebooks::kEntries, books.part_dim}, books.values.data());
}

}  // namespace

void register_assign(py::module_& m) {
  py::class_<Assigner>(m, "Assigner",
                       "Finds the inverted list of each row and its product-quantizer code there.")
      .def(py::init(&make), py::arg("centroids").none(true), py::arg("codebooks").none(true), py::kw_only(),
           py::arg("metric") = "l2", py::arg("by_residual") = true, py::arg("reduced") = py::none(),
           py::arg("groups").none(true) = py::none(), py::arg("directions").none(true) = py::none(),
           "centroids (lists, dim) and codebooks (parts, 256, dim / parts), float32. reduced: search in "
           "bfloat16 first, by default where that is fast; the result is the same. groups: (centers (groups, "
           "dim), probes): only the lists of the best so many groups, each list in that of the nearest "
           "center. directions: (count, dim) orthonormal, along which scores are bounded before they are "
           "computed in full; the result is the same.")
      .def("assign", &assign, py::arg("rows"), py::arg("threads"),
           "(lists (n,) int64 or None, codes (n, parts) uint8 or None) of rows (n, dim) float32.")
      .def("assign_on_device", &assign_on_device, py::arg("rows"), py::arg("count"),
           "The same, of rows in device memory by address, complete once `stream` has come so far; waits.")
      .def_property_readonly("dim", &Assigner::dim)
      .def_property_readonly("device", &device_of, "The one whose memory rows may lie in; empty if none is.")
      .def_property_readonly("stream", &stream_of, "Of its one device; 0 if there is none, or several.")
      .def_property_readonly("device_bytes", &device_bytes_of, "That it holds on its one device.")
      .def_property_readonly("description", &description_of, "Of its one device: kernels and blocks.");
  m.def("device_assigner", &make_on_device, py::arg("centroids").none(true), py::arg("codebooks").none(true),
        py::kw_only(), py::arg("device"), py::arg("metric") = "l2", py::arg("by_residual") = true,
        py::arg("device_memory") = 0,
        "An Assigner on CUDA devices, named as those of an Executable. The result is the CPU's, but where "
        "float32 cannot tell two lists apart.");
  m.def("refine_centroids", &refined_centroids, py::arg("rows"), py::arg("centroids"), py::kw_only(),
        py::arg("metric"), py::arg("spherical"), py::arg("iterations"), py::arg("threads"),
        py::arg("groups").none(true) = py::none(), py::arg("directions").none(true) = py::none(),
        "Centroids (lists, dim) after so many iterations of k-means on rows (n, dim), from those given.");
  m.def("refine_codebooks", &refined_codebooks, py::arg("rows"), py::arg("codebooks"), py::kw_only(),
        py::arg("iterations"), py::arg("threads"),
        "Codebooks (parts, 256, dim / parts) after so many iterations of k-means on rows (n, dim).");
}

}  // namespace fct::bindings
