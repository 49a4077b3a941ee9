// NonFiniteRow names the first bad row, whichever thread meets it and in whatever tile.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "bounded.h"
#include "bounds.h"
#include "check.h"
#include "cpu/cpu_executable.h"
#include "fct/error.h"
#include "random_programs.h"
#include "reference_library.h"

namespace fct::testing {
namespace {

constexpr int kRows = 1400;

struct Reported {
  std::string array;
  std::int64_t row;
  bool operator==(const Reported&) const = default;
};

Reported run(const Executable& executable, const Rows& old, const Rows& side, Rows& out, std::int64_t rows,
             int threads) {
  try {
    executable.run(old.input(), side.input(), out.output(), rows, threads);
  } catch (const NonFiniteRow& error) {
    CHECK(error.kind() == ErrorKind::kArray);
    return {error.array(), error.row()};
  }
  return {"none", -1};
}

std::string text(const Reported& reported) { return reported.array + " row " + std::to_string(reported.row); }

double any_bad(Random& random) {
  return std::vector<double>{NAN, INFINITY, -INFINITY}[static_cast<std::size_t>(uniform(random, 0, 2))];
}

TEST(the_first_bad_row_wins) {
  Random random(41);
  const Program program = paper_program(random, 6, 5, 4, 12);
  for (Precision precision : {Precision::kFp32, Precision::kBf16}) {
    const cpu::CpuExecutable executable(program, precision, ReferenceLibrary());
    for (int repeat = 0; repeat < 150; ++repeat) {
      const DType in = repeat % 2 == 0 ? DType::kFloat32 : DType::kFloat16;
      Rows old = Rows::normal(random, in, kRows, 6), side = Rows::normal(random, in, kRows, 5);
      Rows out(DType::kFloat32, kRows, 4);
      const int rows = uniform(random, 1, kRows);
      Reported expected{"none", -1};
      for (int i = uniform(random, 0, 6); i > 0; --i) {
        const bool in_old = uniform(random, 0, 1) == 0;
        const int row = uniform(random, 0, rows - 1);
        (in_old ? old : side).set(row, uniform(random, 0, in_old ? 5 : 4), any_bad(random));
        if (expected.row < 0 || row < expected.row) expected = {in_old ? "old" : "side", row};
        if (row == expected.row && in_old) expected.array = "old";
      }
      const Reported got = run(executable, old, side, out, rows, uniform(random, 1, 5));
      CHECK(got == expected,
            "got " + text(got) + ", wanted " + text(expected) + " of " + std::to_string(rows));
    }
  }
}

// Doubles a value per row: a large one becomes infinite on the way out, in float32 and in float16.
TEST(a_bad_result_is_found_before_a_later_bad_input) {
  Random random(42);
  const Program program{{2, 2}, 0, -1, 1, {Linear{0, 1, {2, 0, 0, 2}, {0, 0}, Activation::kNone}}};
  const cpu::CpuExecutable executable(program, Precision::kFp32, ReferenceLibrary());
  for (const auto& [out_type, large] : {std::pair{DType::kFloat32, 3e38}, {DType::kFloat16, 40000.0}})
    for (int repeat = 0; repeat < 200; ++repeat) {
      Rows old = Rows::normal(random, DType::kFloat32, kRows, 2);
      Rows out(out_type, kRows, 2);
      const int rows = uniform(random, 2, repeat % 3 == 0 ? 40 : kRows);
      const int overflow = uniform(random, 0, rows - 1), bad_input = uniform(random, 0, rows - 1);
      old.set(overflow, 1, large);
      old.set(bad_input, 0, any_bad(random));
      const Reported expected{overflow < bad_input ? "result" : "old", std::min(overflow, bad_input)};
      const Reported got =
          run(executable, old, Rows(DType::kFloat32, 0, 0), out, rows, uniform(random, 1, 5));
      CHECK(got == expected,
            "got " + text(got) + ", wanted " + text(expected) + " of " + std::to_string(rows));
    }
}

TEST(bf16_overflow_between_layers_is_a_bad_result) {
  Random random(43);
  ProgramBuilder builder(random);
  const ValueId old = builder.value(1);
  const ValueId large = builder.linear(old, 1), out_value = builder.linear(large, 1);
  Program program = builder.finish(old, -1, out_value);
  for (Step& step : program.steps)
    std::get<Linear>(step).weight = {0.99999f}, std::get<Linear>(step).bias = {0};
  Rows rows(DType::kFloat32, 3, 1), out(DType::kFloat32, 3, 1);
  rows.set(1, 0, 3.4e38);  // rounds up to infinity in bfloat16
  const cpu::CpuExecutable executable(program, Precision::kBf16, ReferenceLibrary());
  CHECK((run(executable, rows, Rows(DType::kFloat32, 0, 0), out, 3, 1) == Reported{"result", 1}));
}

// Two hidden values overflow, their difference is NaN, and ReLU makes a zero of it.
TEST(an_overflow_that_an_activation_would_hide_is_a_bad_result) {
  const Program program{
      {1, 2, 1, 1},
      0,
      -1,
      3,
      {Linear{0, 1, {1e20f, 1e20f}, {0, 0}, Activation::kNone}, Linear{1, 2, {1, -1}, {0}, Activation::kRelu},
       Linear{2, 3, {1}, {0}, Activation::kNone}}};
  const auto engine = make_cpu_engine();
  for (Precision precision : engine->precisions()) {
    const auto executable = engine->compile(program, precision, {{0, 8.0f}, {1, 8e20f}, {2, 1.0f}});
    Rows rows(DType::kFloat32, 9, 1), out(DType::kFloat32, 9, 1);
    for (int row = 0; row < 9; ++row) rows.set(row, 0, row);
    CHECK((run(*executable, rows, Rows(DType::kFloat32, 0, 0), out, 9, 1) == Reported{"none", -1}));
    rows.set(5, 0, 1e25);
    CHECK((run(*executable, rows, Rows(DType::kFloat32, 0, 0), out, 9, 1) == Reported{"result", 5}));
    rows.set(5, 0, NAN);
    CHECK((run(*executable, rows, Rows(DType::kFloat32, 0, 0), out, 9, 1) == Reported{"old", 5}));
  }
}

TEST(up_to_the_largest_safe_input_results_are_right_and_beyond_it_refused) {
  Random random(44);
  int refused = 0;
  for (int i = 0; i < 60; ++i) {
    const Program program = random_program(random);
    const float limit = largest_safe_input(program);
    CHECK(limit > 1e15f, describe(program));
    if (limit == FLT_MAX) continue;  // nothing hides an overflow
    const cpu::CpuExecutable executable(program, Precision::kFp32, ReferenceLibrary());
    Rows old(DType::kFloat32, 20, executable.old_dim()), side(DType::kFloat32, 20, executable.side_dim()),
        out(DType::kFloat32, 20, executable.new_dim());
    for (Rows* rows : {&old, &side})
      for (int row = 0; row < 20; ++row)
        for (int column = 0; column < rows->width(); ++column)
          rows->set(row, column, uniform(random, 0, 1) == 0 ? limit : -limit);
    if (run(executable, old, side, out, 20, 1) == Reported{"none", -1})
      for (int row = 0; row < 20; ++row)
        check_row(evaluate(program, Precision::kFp32, old, side, row), out, row, program);
    old.set(11, 0, 1.01 * static_cast<double>(limit));
    const Reported beyond = run(executable, old, side, out, 20, 1);
    CHECK(beyond.array == "result" && beyond.row <= 11, text(beyond) + " of " + describe(program));
    ++refused;
  }
  CHECK(refused > 20);
}

TEST(where_no_activation_follows_nothing_is_refused) {
  const Program program{{1, 1, 1}, 0, -1, 2, {Linear{0, 1, {1}, {0}, Activation::kNone}, Normalize{1, 2}}};
  CHECK(largest_safe_input(program) == FLT_MAX);
}

}  // namespace
}  // namespace fct::testing
