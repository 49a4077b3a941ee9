// Note [Same bytes] in csrc/cpu/cpu_executable.cpp: a row's result depends on nothing but the row.
#include <algorithm>

#include "bounded.h"
#include "check.h"
#include "cpu/cpu_executable.h"
#include "random_programs.h"
#include "reference_library.h"

namespace fct::testing {
namespace {

// One call over all rows is the yardstick; then any stretch of rows, among other neighbours, by any number of
// threads.
void check_same_bytes(Random& random, const Program& program, const Executable& executable, int rows,
                      int repeats) {
  const DType in = uniform(random, 0, 1) == 0 ? DType::kFloat32 : DType::kFloat16;
  const Rows old = Rows::normal(random, in, rows, executable.old_dim());
  const Rows side = Rows::normal(random, in, rows, executable.side_dim());
  Rows expected(DType::kFloat32, rows, executable.new_dim());
  executable.run(old.input(), side.input(), expected.output(), rows, 1);
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const int limit = repeat % 2 == 0 ? 40 : rows;
    const int count = uniform(random, 1, std::min(limit, rows)), first = uniform(random, 0, rows - count);
    const int place = uniform(random, 0, 9), threads = uniform(random, 1, 5);
    // The stretch is moved to another place, between rows it has never seen.
    Rows other_old = Rows::normal(random, in, count + 20, executable.old_dim());
    Rows other_side = Rows::normal(random, in, count + 20, executable.side_dim());
    std::copy(old.row(first), old.row(first + count), other_old.row(place));
    std::copy(side.row(first), side.row(first + count), other_side.row(place));
    Rows out(DType::kFloat32, count + 20, executable.new_dim());
    executable.run(other_old.input(), other_side.input(), out.output(), count + 20, threads);
    const std::string what = "rows " + std::to_string(first) + "+" + std::to_string(count) + " moved to " +
                             std::to_string(place) + ", threads " + std::to_string(threads) + ", " +
                             describe(program) + ", " + executable.description();
    CHECK(std::equal(out.row(place), out.row(place + count), expected.row(first)), what);
    // The same stretch alone, read where it lies.
    executable.run(old.input(first), side.input(first), out.output(), count, threads);
    CHECK(std::equal(out.row(0), out.row(count), expected.row(first)), what);
  }
}

TEST(same_bytes_from_plain_loops) {
  Random random(31);
  for (int i = 0; i < 12; ++i)
    for (Precision precision : {Precision::kFp32, Precision::kBf16, Precision::kInt8}) {
      const Program program = random_program(random, 30);
      const Ranges ranges = roomy_ranges(random, program);
      check_same_bytes(random, program, cpu::CpuExecutable(program, precision, ReferenceLibrary(), ranges),
                       600, 6);
    }
}

TEST(same_bytes_from_the_matrix_library) {
  Random random(32);
  const auto engine = make_cpu_engine();
  for (Precision precision : engine->precisions()) {
    for (int i = 0; i < 30; ++i) {
      const Program program = random_program(random);
      check_same_bytes(random, program, *engine->compile(program, precision, roomy_ranges(random, program)),
                       1200, 12);
    }
    for (int inner : {1030, 2048, 4500, 20000}) {
      const Program program = mlp_program(random, 32, 40, 24, inner);
      check_same_bytes(random, program, *engine->compile(program, precision, roomy_ranges(random, program)),
                       600, 6);
    }
  }
}

// A library that sums in another order for few rows must lose its small tiles, not change the bytes.
TEST(tiles_that_round_differently_are_dropped) {
  Random random(33);
  const Program program = paper_program(random, 24, 24, 16, 64);
  for (Precision precision : {Precision::kFp32, Precision::kBf16}) {
    for (const auto& [backwards_below, kept] : {std::pair{8, "tiles 512 256 128 64 32 16 8;"},
                                                {9, "tiles 512 256 128 64 32 16;"},
                                                {100, "tiles 512 256 128;"},
                                                {300, "tiles 512;"}}) {
      const cpu::CpuExecutable executable(program, precision,
                                          ReferenceLibrary({.backwards_below = backwards_below}));
      CHECK(executable.description().starts_with(kept), executable.description());
      check_same_bytes(random, program, executable, 550, 4);
    }
  }
}

}  // namespace
}  // namespace fct::testing
