#include <pybind11/stl.h>

#include "arrays.h"
#include "fct/error.h"
#include "fct/pipeline.h"
#include "gil.h"
#include "registry.h"

namespace fct::bindings {
namespace {

constexpr std::int64_t kMaxBlockRows = std::int64_t{1} << 20;

Keep keep_from_name(const std::string& name) {
  if (name == "none") return Keep::kNothing;
  if (name == "rows") return Keep::kRows;
  if (name == "normalized") return Keep::kNormalizedRows;
  throw Error(ErrorKind::kArray, "keep_on_device is " + name + ", wanted none, rows or normalized");
}

// NumPy sees the blocks' buffers; whoever keeps a view keeps the buffers alive.
using SharedBlocks = std::shared_ptr<std::vector<Block>>;

py::array view(const SharedBlocks& blocks, char* data, DType dtype, std::int64_t rows, int dim) {
  const py::capsule owner(new SharedBlocks(blocks),
                          [](void* kept) { delete static_cast<SharedBlocks*>(kept); });
  return py::array(numpy_dtype(dtype), {rows, static_cast<std::int64_t>(dim)}, {}, data, owner);
}

PipelineStages stages_from(const Executable& executable, const PipelineConfig& config,
                           const SharedBlocks& blocks, const py::function& read, const py::function& write,
                           const py::object& index) {
  auto block_at = [blocks](int number) -> Block& { return (*blocks)[static_cast<std::size_t>(number)]; };
  auto results = [=, &executable](int number, std::int64_t rows) {
    return view(blocks, block_at(number).out.get(), config.out_dtype, rows, executable.new_dim());
  };
  PipelineStages stages;
  stages.read = [=, &executable](int number) {
    const py::gil_scoped_acquire gil;
    Block& block = block_at(number);
    py::object side = py::none();
    if (block.side)
      side = view(blocks, block.side.get(), config.side_dtype, config.block_rows, executable.side_dim());
    const py::array old =
        view(blocks, block.old.get(), config.old_dtype, config.block_rows, executable.old_dim());
    const auto rows = read(old, side).cast<std::int64_t>();
    if (rows < 0 || rows > config.block_rows)
      throw Error(ErrorKind::kArray, "read returned an impossible row count");
    return rows;
  };
  stages.write = [=](int number, std::int64_t rows) {
    const py::gil_scoped_acquire gil;
    write(results(number, rows));
  };
  if (!index.is_none())
    stages.index = [=](int number, std::int64_t rows) {
      const py::gil_scoped_acquire gil;
      index(results(number, rows), reinterpret_cast<std::uintptr_t>(block_at(number).kept.get()));
    };
  stages.poll = [] {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
  return stages;
}

py::dict run(const Executable& executable, const py::function& read, const py::function& write,
             const py::object& index, std::int64_t block_rows, int threads, const std::string& old_dtype,
             const std::string& side_dtype, const std::string& out_dtype, bool side_is_old,
             const std::string& keep_on_device) {
  PipelineConfig config;
  config.block_rows = block_rows;
  config.threads = threads;
  config.old_dtype = dtype_from_name(old_dtype);
  config.side_dtype = dtype_from_name(side_dtype);
  config.out_dtype = dtype_from_name(out_dtype);
  config.side_is_old = side_is_old;
  config.keep = keep_from_name(keep_on_device);
  if (block_rows < 1 || block_rows > kMaxBlockRows || threads < 1)
    throw Error(ErrorKind::kArray,
                "block_rows must be from 1 to " + std::to_string(kMaxBlockRows) + " and threads at least 1");
  if (side_is_old && executable.side_dim() > 0 && executable.side_dim() != executable.old_dim())
    throw Error(ErrorKind::kArray, "old cannot stand in for side: their dims differ");
  SharedBlocks blocks;
  {
    const GilReleased released;  // pinning memory takes long, and other pipelines may be at work
    blocks = std::make_shared<std::vector<Block>>(allocate_blocks(executable, config));
  }
  const PipelineStages stages = stages_from(executable, config, blocks, read, write, index);
  PipelineTimes times;
  {
    const GilReleased released;
    times = run_pipeline(executable, config, *blocks, stages);
  }
  using namespace py::literals;
  return py::dict("rows"_a = times.rows, "wall"_a = times.wall, "read"_a = times.read,
                  "transform"_a = times.transform, "write"_a = times.write, "index"_a = times.index);
}

}  // namespace

void register_pipeline(py::module_& m) {
  m.def(
      "run_pipeline", &run, py::arg("executable"), py::kw_only(), py::arg("read"), py::arg("write"),
      py::arg("index").none(true), py::arg("block_rows"), py::arg("threads"), py::arg("old_dtype"),
      py::arg("side_dtype"), py::arg("out_dtype"), py::arg("side_is_old"), py::arg("keep_on_device") = "none",
      "Stream blocks through read -> transform -> write + index; returns seconds at work by stage. index is "
      "also told where on the device the block's results lie, as float32, if keep_on_device is rows or "
      "normalized and the device has memory for them, else 0.");
}

}  // namespace fct::bindings
