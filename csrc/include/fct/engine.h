// The device seam: an Engine compiles a Program for its device, an Executable runs it on rows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fct/dtype.h"
#include "fct/program.h"

namespace fct {

// Rows in host memory, C-contiguous: (rows, width).
struct InputRows {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
};

struct OutputRows {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

class Executable {
 public:
  virtual ~Executable() = default;

  // Transforms `rows` rows. `side.data` is null exactly if the program has one input. Safe to call from many
  // threads at once. The result depends on nothing but the row itself (Note [Same bytes],
  // cpu_executable.cpp). Throws NonFiniteRow for the first row, in input order, whose input or result is not
  // finite; the output is then unspecified.
  virtual void run(InputRows old, InputRows side, OutputRows out, std::int64_t rows, int threads) const = 0;

  virtual int old_dim() const = 0;
  virtual int side_dim() const = 0;  // 0: the program has one input
  virtual int new_dim() const = 0;
  virtual Precision precision() const = 0;
  virtual std::string description() const = 0;  // kernels and tile sizes, for people
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::vector<Precision> precisions() const = 0;  // native ones, slowest first
  virtual std::unique_ptr<Executable> compile(const Program& program, Precision precision) const = 0;
};

std::unique_ptr<Engine> make_cpu_engine();

// Another runtime behind the same seam: computes float32 rows; `side` is null if there is one input. Must be
// safe to call from many threads at once.
using RowFunction = std::function<void(const float* old, const float* side, float* out, std::int64_t rows)>;

struct RowFunctionTraits {
  int old_dim = 0;
  int side_dim = 0;
  int new_dim = 0;
  bool normalize = false;  // L2-normalise what the function returns
  std::string description;
};

// Puts the casts and checks of an Executable around a function; calls it with at most 65,536 rows.
std::unique_ptr<Executable> make_function_executable(RowFunction function, RowFunctionTraits traits);

}  // namespace fct
