// The seam between scheduling and the device: memory, streams, events, graphs and a few operations on rows.
// Above it nothing includes a CUDA header; the tests put a device of their own behind it.
#pragma once

#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "assignment.h"
#include "fct/cuda.h"
#include "fct/dtype.h"
#include "fct/error.h"
#include "fct/program.h"

// Objects of these classes cross the border of the library that holds the CUDA part.
#define FCT_SHARED __attribute__((visibility("default")))

namespace fct::cuda {

// Not enough memory on the device; a smaller block may fit.
class FCT_SHARED OutOfDeviceMemory : public Error {
 public:
  explicit OutOfDeviceMemory(const std::string& message) : Error(ErrorKind::kDeviceMemory, message) {}
};

using Stream = void*;  // handles of the device, opaque here
using Event = void*;
using Graph = void*;

// Rows on the device: row r starts `r * stride` elements behind `data`. What is stored is value * scale; the
// scale is 1 except in float8.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t stride = 0;
  float scale = 1;
};

// Columns from `columns` up to `padded` are written as zeros.
struct Extent {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t padded = 0;
};

// What loading and storing rows finds out about them.
struct RowChecks {
  std::uint8_t* flags = nullptr;      // by row of the block: not 0 if a value is not finite as stored
  std::int64_t* first_bad = nullptr;  // lowest bad row so far, kNoBadRow if none; may be null
  float largest = FLT_MAX;  // rows with a larger value are flagged when they are loaded; see bounds.h
};

// Every byte the same, so that a fill can write it.
constexpr int kNoBadRowByte = 0x7f;
constexpr std::int64_t kNoBadRow = 0x7f7f7f7f7f7f7f7f;

constexpr std::size_t kAlignment = 256;                          // of every allocation, in bytes
constexpr std::int64_t kPadding = 16;                            // widths of matrices are multiples of it
constexpr std::size_t kLinearWorkspace = std::size_t{32} << 20;  // bytes a linear layer may use while it runs

// One linear layer, output = activation(input @ weight.T + bias), for a few fixed row counts. All widths are
// padded; what pads weight and bias is zero, so it comes out as zero whatever the input's padding holds,
// unless that is not finite.
struct LinearSpec {
  std::vector<float> weight;  // (d_out, d_in)
  std::vector<float> bias;    // (d_out)
  std::int64_t d_in = 0, d_out = 0;
  Activation activation = Activation::kNone;
  Precision precision = Precision::kFp32;
  Matrix input, output;            // where the rows always lie
  int choice = 0;                  // which of the kernels, best first; the last one if there are fewer
  std::vector<std::int64_t> rows;  // row counts, largest first
};

class FCT_SHARED PreparedLinear {
 public:
  virtual ~PreparedLinear() = default;
  // `size` indexes the row counts; `workspace` is kLinearWorkspace bytes.
  virtual void enqueue(std::size_t size, void* workspace, Stream stream) = 0;
  virtual std::string kernel() const = 0;
};

// Calls throw Error(kResource) with the device's own words, unless marked noexcept. Whatever takes a stream
// is only enqueued; all else acts at once. Calls may come from many threads.
class FCT_SHARED Device {
 public:
  virtual ~Device() = default;
  virtual CudaDeviceInfo info() const = 0;  // its free memory is known
  virtual std::string label() const = 0;    // "cuda:0", for messages

  virtual void* allocate(std::size_t bytes) = 0;  // throws OutOfDeviceMemory
  virtual void release(void* memory) noexcept = 0;
  virtual void* allocate_pinned(std::size_t bytes) = 0;
  virtual void release_pinned(void* memory) noexcept = 0;
  virtual bool is_pinned(const void* memory, std::size_t bytes) = 0;  // can be copied from and to directly

  virtual Stream create_stream() = 0;
  virtual void destroy_stream(Stream stream) noexcept = 0;
  virtual void synchronize_stream(Stream stream) = 0;
  virtual bool is_capturing(Stream stream) = 0;  // into a graph of the caller
  virtual Event create_event() = 0;
  virtual void destroy_event(Event event) noexcept = 0;
  virtual void record(Event event, Stream stream) = 0;
  virtual void wait(Stream stream, Event event) = 0;  // nothing to wait for if it was never recorded
  virtual void synchronize_event(Event event) = 0;

  // Records what `enqueue` puts on `stream` without running it.
  virtual Graph capture(Stream stream, const std::function<void()>& enqueue) = 0;
  virtual void destroy_graph(Graph graph) noexcept = 0;
  virtual void launch(Graph graph, Stream stream) = 0;

  virtual void copy_in(void* to, const void* from, std::size_t bytes, Stream stream) = 0;
  virtual void copy_out(void* to, const void* from, std::size_t bytes, Stream stream) = 0;
  virtual void fill(void* memory, int byte, std::size_t bytes, Stream stream) = 0;

  // Null if no kernel of the device does this as one operation.
  virtual std::unique_ptr<PreparedLinear> prepare(const LinearSpec& spec) = 0;

  // Casts rows into a block: rows from extent.rows up to `block_rows` become zeros. Rows that are not finite
  // are noted; those that are not finite as stored, which may be short of range, or too large, are flagged.
  virtual void load(const Matrix& from, const Matrix& to, Extent extent, std::int64_t block_rows,
                    RowChecks checks, Stream stream) = 0;
  // Casts results out of a block; rows that are flagged or not finite are noted and become NaN.
  virtual void store(const Matrix& from, const Matrix& to, Extent extent, RowChecks checks,
                     Stream stream) = 0;
  // to = activation(from); may work in place.
  virtual void convert(const Matrix& from, const Matrix& to, Extent extent, Activation activation,
                       Stream stream) = 0;
  // Flags rows that are not finite.
  virtual void flag(const Matrix& from, Extent extent, std::uint8_t* flags, Stream stream) = 0;
  // Sums in float32.
  virtual void add(const Matrix& left, const Matrix& right, const Matrix& to, Extent extent,
                   Stream stream) = 0;
  // Divides each row by its L2 norm (at least 1e-12), summed in float64 so that no finite row overflows.
  virtual void normalize(const Matrix& from, const Matrix& to, Extent extent, Stream stream) = 0;

  // Notes rows that are not finite. If there are centroids: to = rows less their mean, rows from rows.count
  // up to `block_rows` and columns up to `padded` zeros; and begins a search for each row.
  virtual void shift(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& to,
                     std::int64_t padded, std::int64_t block_rows, ListSearch* searches, Stream stream) = 0;
  // Goes on with the searches: `scores`, (rows.count, lists) float32, are those of so many lists from
  // `first_list` on. After the last of all lists, rows.lists are filled.
  virtual void search(const AssignedRows& rows, const DeviceCentroids& centroids, const Matrix& scores,
                      std::int64_t first_list, std::int64_t lists, ListSearch* searches, Stream stream) = 0;
  // Fills rows.codes, of rows less centroids.values[rows.lists] if there are any.
  virtual void encode(const AssignedRows& rows, const DeviceCentroids& centroids,
                      const DeviceCodebooks& codebooks, Stream stream) = 0;
};

// What the CUDA part offers; there is one for the process.
class FCT_SHARED Platform {
 public:
  virtual ~Platform() = default;
  virtual int count() = 0;
  virtual std::vector<CudaDeviceInfo> devices() = 0;  // sets none of them up
  virtual std::string driver_version() = 0;
  virtual std::string cublaslt_version() = 0;
  virtual std::unique_ptr<Device> open(int index) = 0;
};

// The one symbol of the CUDA part, by this name.
constexpr const char* kPlatformSymbol = "fct_cuda_platform";
using PlatformFunction = Platform& (*)();

}  // namespace fct::cuda
