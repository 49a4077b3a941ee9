// The tile loop against the definition, with plain loops for the layers and with the matrix library itself.
#include <algorithm>
#include <thread>

#include "bounded.h"
#include "check.h"
#include "cpu/cpu_executable.h"
#include "fct/error.h"
#include "reference_library.h"

namespace fct::testing {
namespace {

constexpr Precision kPrecisions[] = {Precision::kFp32, Precision::kBf16, Precision::kInt8};

DType any_border_type(Random& random) {
  return uniform(random, 0, 1) == 0 ? DType::kFloat32 : DType::kFloat16;
}

std::unique_ptr<Executable> with_loops(const Program& program, Precision precision,
                                       ReferenceOptions options = {}, const Ranges& ranges = {}) {
  return std::make_unique<cpu::CpuExecutable>(program, precision, ReferenceLibrary(options), ranges);
}

// Runs `rows` random rows and compares a sample of the results, the first and the last row among them.
void check_against_definition(Random& random, const Program& program, const Executable& executable,
                              std::int64_t rows, int threads, const Ranges& ranges = {}) {
  const Rows old = Rows::normal(random, any_border_type(random), rows, executable.old_dim());
  const Rows side = Rows::normal(random, any_border_type(random), rows, executable.side_dim());
  Rows out(any_border_type(random), rows + 1, executable.new_dim());
  std::fill_n(out.row(rows), out.row_bytes(), 'x');
  executable.run(old.input(), side.input(), out.output(), rows, threads);
  for (int sample = 0; sample < std::min<std::int64_t>(rows, 24); ++sample) {
    const std::int64_t row = sample == 0   ? 0
                             : sample == 1 ? rows - 1
                                           : uniform(random, 0, static_cast<int>(rows) - 1);
    check_row(evaluate(program, executable.precision(), old, side, row, ranges), out, row, program);
  }
  CHECK(std::count(out.row(rows), out.row(rows) + out.row_bytes(), 'x') ==
            static_cast<std::ptrdiff_t>(out.row_bytes()),
        "writes behind the last row, " + describe(program));
}

TEST(random_programs_match_the_definition) {
  Random random(21);
  for (int i = 0; i < 150; ++i) {
    const Program program = random_program(random);
    const Ranges ranges = roomy_ranges(random, program);
    for (Precision precision : kPrecisions) {
      const auto executable = with_loops(program, precision, {}, ranges);
      CHECK(executable->precision() == precision && executable->new_dim() == program.width(program.output));
      check_against_definition(random, program, *executable, uniform(random, 0, 700), uniform(random, 1, 5),
                               ranges);
    }
  }
}

TEST(matrix_library_matches_the_definition) {
  Random random(22);
  const auto engine = make_cpu_engine();
  for (Precision precision : engine->precisions()) {
    for (int i = 0; i < 80; ++i) {
      const Program program = random_program(random);
      const Ranges ranges = roomy_ranges(random, program);
      check_against_definition(random, program, *engine->compile(program, precision, ranges),
                               uniform(random, 0, 1500), uniform(random, 1, 5), ranges);
    }
    for (int inner : {1025, 2048, 5000}) {
      const Program program = mlp_program(random, 33, 64, 70, inner);
      const Ranges ranges = roomy_ranges(random, program);
      const auto executable = engine->compile(program, precision, ranges);
      for (int rows : {1, 8, 65, 300})
        check_against_definition(random, program, *executable, rows, 2, ranges);
    }
  }
}

TEST(engine_refuses_what_it_cannot_do) {
  Random random(23);
  const auto engine = make_cpu_engine();
  const auto precisions = engine->precisions();
  CHECK(precisions.front() == Precision::kFp32);
  if (std::count(precisions.begin(), precisions.end(), Precision::kBf16) == 0) {
    try {
      engine->compile(random_program(random), Precision::kBf16);
      CHECK(false, "compiled bf16 without native bf16");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kUnsupported);
    }
  }
  Program broken = random_program(random);
  broken.output = broken.old;
  try {
    engine->compile(broken, Precision::kFp32);
    CHECK(false, "compiled a malformed program");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kArtifact);
  }
}

TEST(many_callers_share_one_executable) {
  Random random(24);
  const Program program = paper_program(random, 12, 9, 11, 40);
  const auto executable = with_loops(program, Precision::kBf16);
  const Rows old = Rows::normal(random, DType::kFloat32, 700, 12),
             side = Rows::normal(random, DType::kFloat16, 700, 9);
  Rows expected(DType::kFloat32, 700, 11);
  executable->run(old.input(), side.input(), expected.output(), 700, 1);
  std::vector<int> wrong(6, 0);
  {
    std::vector<std::jthread> callers;
    for (int& count : wrong)
      callers.emplace_back([&, threads = 1 + static_cast<int>(callers.size()) % 3] {
        for (int repeat = 0; repeat < 5; ++repeat) {
          Rows out(DType::kFloat32, 700, 11);
          executable->run(old.input(), side.input(), out.output(), 700, threads);
          count += std::equal(out.row(0), out.row(700), expected.row(0)) ? 0 : 1;
        }
      });
  }
  CHECK(std::count(wrong.begin(), wrong.end(), 0) == 6);
}

TEST(a_failing_layer_stops_the_run_and_leaves_the_executable_usable) {
  constexpr std::int64_t kRows = 50'000;  // about a hundred tiles
  Random random(25);
  const Program program = mlp_program(random, 2, 2, 1, 2);
  std::atomic<int> runs{1 << 30};  // until the failure; counts on below zero
  auto fail_in_time = [&] {
    const int left = --runs;
    if (left == 0) throw std::runtime_error("the matrix library failed");
    if (left < 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  const auto executable = with_loops(program, Precision::kFp32, {.before_run = fail_in_time});
  const Rows old = Rows::normal(random, DType::kFloat32, kRows, 2),
             side = Rows::normal(random, DType::kFloat32, kRows, 2);
  Rows out(DType::kFloat32, kRows, 1);
  for (int threads = 1; threads <= 5; ++threads) {
    runs = 9;
    std::string message;
    try {
      executable->run(old.input(), side.input(), out.output(), kRows, threads);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message == "the matrix library failed", message);
    CHECK(runs > -100, "the other threads went on for " + std::to_string(-runs) + " layers");
    runs = 1 << 30;
    executable->run(old.input(), side.input(), out.output(), kRows, threads);
    check_row(evaluate(program, Precision::kFp32, old, side, kRows - 1), out, kRows - 1, program);
  }
}

}  // namespace
}  // namespace fct::testing
