// The device seam: an Engine compiles a Program for its device, an Executable runs it on rows.
#pragma once

#include <cstdint>
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

}  // namespace fct
