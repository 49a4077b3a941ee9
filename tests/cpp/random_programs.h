// Programs and rows to try things on.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "fct/engine.h"
#include "fct/program.h"

namespace fct::testing {

using Random = std::mt19937;

int uniform(Random& random, int low, int high);  // both ends included

// Weights scaled so that values keep their size.
Linear random_linear(Random& random, ValueId input, ValueId output, int d_in, int d_out,
                     Activation activation);

// Adds values and steps to a program.
class ProgramBuilder {
 public:
  explicit ProgramBuilder(Random& random) : random_(random) {}
  ValueId value(int width);
  ValueId linear(ValueId input, int width, Activation activation = Activation::kNone);
  ValueId concat(std::vector<ValueId> inputs);
  ValueId add(ValueId left, ValueId right);
  ValueId normalize(ValueId input);
  Program finish(ValueId old, ValueId side, ValueId output);
  const Program& program() const { return program_; }

 private:
  Random& random_;
  Program program_;
};

// One to eight steps of any kind over values up to `max_width` wide; some values are read often, some never.
Program random_program(Random& random, int max_width = 70);

// The transformation of arXiv 2112.02805.
Program paper_program(Random& random, int old_dim, int side_dim, int new_dim, int inner);

// One hidden layer on the concatenation of both inputs.
Program mlp_program(Random& random, int old_dim, int side_dim, int new_dim, int hidden);

// For messages: "linear 3->7, add, ...".
std::string describe(const Program& program);

// Rows in memory as a caller would hold them.
class Rows {
 public:
  Rows(DType dtype, std::int64_t rows, int width);
  static Rows normal(Random& random, DType dtype, std::int64_t rows, int width);

  double at(std::int64_t row, int column) const;
  void set(std::int64_t row, int column, double value);
  char* row(std::int64_t index) { return bytes_.data() + offset(index); }
  const char* row(std::int64_t index) const { return bytes_.data() + offset(index); }
  InputRows input(std::int64_t first = 0) const { return {width_ > 0 ? row(first) : nullptr, dtype_}; }
  OutputRows output(std::int64_t first = 0) { return {row(first), dtype_}; }
  std::size_t row_bytes() const { return static_cast<std::size_t>(width_) * size_of(dtype_); }
  int width() const { return width_; }
  DType dtype() const { return dtype_; }

 private:
  std::size_t offset(std::int64_t row) const { return static_cast<std::size_t>(row) * row_bytes(); }
  DType dtype_;
  int width_;
  std::vector<char> bytes_;
};

}  // namespace fct::testing
