// Rows that are not finite, or become so on the way, are found on a device as well, and only they.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "cuda_cases.h"
#include "fct/error.h"

namespace fct::testing {
namespace {

// Compiling tries random rows; those that a precision cannot hold are no reason to refuse a program.
TEST(cuda_programs_for_small_rows_are_compiled) {
  auto program = [](float weight, float bias) {
    Program made;
    made.widths = {2, 1, 1};
    made.old = 0;
    made.output = 2;
    made.steps = {Linear{0, 1, {weight, weight}, {bias}, Activation::kRelu},
                  Linear{1, 2, {1}, {0}, Activation::kNone}};
    return made;
  };
  const auto device = std::make_shared<FakeDevice>();
  const auto executable = with_blocks_of(128, device, program(60000, 0), Precision::kFp16);
  Rows old(DType::kFloat32, 1, 2), out(DType::kFloat32, 1, 1);
  old.set(0, 0, 0.125), old.set(0, 1, 0.125);
  executable->run(old.input(), {}, out.output(), 1, 1);
  CHECK(std::abs(out.at(0, 0) - 15000) < 20);
  try {
    with_blocks_of(128, device, program(0, 1e6f), Precision::kFp16);
    CHECK(false, "compiled what always overflows");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kUnsupported, error.what());
  }
}

TEST(cuda_the_first_bad_row_wins) {
  Random random(72);
  const Program program = paper_program(random, 6, 5, 4, 12);
  const auto executable = with_blocks_of(128, std::make_shared<FakeDevice>(), program, Precision::kBf16);
  constexpr int kRows = 1400;
  for (int repeat = 0; repeat < 30; ++repeat) {
    Rows old = Rows::normal(random, DType::kFloat32, kRows, 6);
    Rows side = Rows::normal(random, DType::kFloat16, kRows, 5);
    Rows out(DType::kFloat32, kRows, 4);
    const int rows = uniform(random, 1, kRows);
    std::string array = "none";
    std::int64_t first = -1;
    for (int i = uniform(random, 0, 4); i > 0; --i) {
      const bool in_old = uniform(random, 0, 1) == 0;
      const int row = uniform(random, 0, rows - 1);
      (in_old ? old : side).set(row, 0, uniform(random, 0, 1) == 0 ? NAN : INFINITY);
      if (first < 0 || row < first) first = row, array = in_old ? "old" : "side";
      if (row == first && in_old) array = "old";
    }
    try {
      executable->run(old.input(), side.input(), out.output(), rows, 2);
      CHECK(first == -1);
    } catch (const NonFiniteRow& error) {
      CHECK(error.array() == array && error.row() == first, error.what());
    }
  }
}

// One hidden value of the last row overflows float16; the layer after it makes NaN or -infinity of that, and
// its ReLU a 0, which would look like any other result.
TEST(cuda_a_hidden_value_beyond_float16_is_found) {
  for (const float second : {-1.f, 1.f}) {
    Program program;
    program.widths = {2, 2, 2, 2};
    program.old = 0;
    program.output = 3;
    const std::vector<float> zeros{0, 0}, unit{1, 0, 0, 1};
    program.steps = {Linear{0, 1, {300, 0, 0, 300}, zeros, Activation::kRelu},
                     Linear{1, 2, {-1, second, second, -1}, zeros, Activation::kRelu},
                     Linear{2, 3, unit, {1, 1}, Activation::kNone}};
    for (const bool fused : {true, false}) {
      FakeOptions options;
      options.bare_sums_only = !fused;
      const auto device = std::make_shared<FakeDevice>(options);
      const auto executable = with_blocks_of(128, device, program, Precision::kFp16);
      constexpr int kRows = 150;
      Rows old(DType::kFloat32, kRows, 2), out(DType::kFloat32, kRows, 2);
      for (int row = 0; row < kRows; ++row) old.set(row, 0, 2), old.set(row, 1, 3);
      executable->run(old.input(), {}, out.output(), kRows, 1);
      old.set(kRows - 1, 0, 400), old.set(kRows - 1, 1, 400);
      try {
        executable->run(old.input(), {}, out.output(), kRows, 1);
        CHECK(false, "an overflow went unnoticed");
      } catch (const NonFiniteRow& error) {
        CHECK(error.row() == kRows - 1, error.what());
      }
      const auto& on_device = dynamic_cast<const DeviceExecutable&>(*executable);
      const cuda::Stream stream = device->create_stream();
      on_device.run_on_device(old.input(), {}, out.output(), kRows, stream);
      device->synchronize_stream(stream);
      device->destroy_stream(stream);
      CHECK(std::isnan(out.at(kRows - 1, 0)) && std::isnan(out.at(kRows - 1, 1)));
      CHECK(std::isfinite(out.at(0, 0)) && std::isfinite(out.at(kRows - 2, 1)));
    }
  }
}

// See bounds.h: the difference of two infinite sums is NaN, and ReLU may make a zero of it.
TEST(cuda_an_overflow_that_an_activation_would_hide_is_a_bad_result) {
  const Program program{
      {1, 2, 1, 1},
      0,
      -1,
      3,
      {Linear{0, 1, {1e20f, 1e20f}, {0, 0}, Activation::kNone}, Linear{1, 2, {1, -1}, {0}, Activation::kRelu},
       Linear{2, 3, {1}, {0}, Activation::kNone}}};
  for (Precision precision : {Precision::kFp32, Precision::kTf32, Precision::kBf16}) {
    const auto device = std::make_shared<FakeDevice>();
    const auto executable = with_blocks_of(128, device, program, precision);
    Rows old(DType::kFloat32, 150, 1), out(DType::kFloat32, 150, 1);
    for (int row = 0; row < 150; ++row) old.set(row, 0, row);
    executable->run(old.input(), {}, out.output(), 150, 1);
    old.set(140, 0, 1e25);
    try {
      executable->run(old.input(), {}, out.output(), 150, 1);
      CHECK(false, "an overflow went unnoticed");
    } catch (const NonFiniteRow& error) {
      CHECK(error.row() == 140 && error.array() == "result", error.what());
    }
  }
}

// In device memory nobody is there to be told: the row itself says so, and its neighbours are untouched.
TEST(cuda_device_rows_on_the_callers_streams) {
  Random random(73);
  const Program program = paper_program(random, 6, 5, 4, 12);
  const auto device = std::make_shared<FakeDevice>();
  constexpr int kRows = 700;
  Rows old = Rows::normal(random, DType::kFloat32, kRows, 6);
  const Rows side = Rows::normal(random, DType::kFloat16, kRows, 5);
  {
    const auto executable = with_blocks_of(128, device, program, Precision::kFp16);
    const auto* on_device = dynamic_cast<const DeviceExecutable*>(executable.get());
    CHECK(on_device != nullptr);
    Rows expected(DType::kFloat32, kRows, 4);
    executable->run(old.input(), side.input(), expected.output(), kRows, 1);
    old.set(130, 2, INFINITY);
    std::vector<cuda::Stream> streams{device->create_stream(), device->create_stream()};
    std::vector<Rows> results(6, Rows(DType::kFloat32, kRows, 4));
    for (std::size_t i = 0; i < results.size(); ++i)
      on_device->run_on_device(old.input(), side.input(), results[i].output(), kRows, streams[i % 2]);
    for (cuda::Stream stream : streams) {
      device->synchronize_stream(stream);
      device->destroy_stream(stream);
    }
    for (Rows& result : results) {
      for (int column = 0; column < 4; ++column) CHECK(std::isnan(result.at(130, column)));
      std::copy(expected.row(130), expected.row(131), result.row(130));
      CHECK(std::equal(result.row(0), result.row(kRows), expected.row(0)));
    }
  }
  check_all_freed(*device);
}

}  // namespace
}  // namespace fct::testing
