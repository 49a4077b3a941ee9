// int8 on the CPU: sums that saturate nowhere, values rounded as the plan says, and what is not finite found.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>
#include <set>

#include "bounded.h"
#include "check.h"
#include "cpu/convert.h"
#include "cpu/cpu_executable.h"
#include "cpu/onednn_integer.h"
#include "fct/error.h"
#include "plan.h"
#include "random_programs.h"

namespace fct::testing {
namespace {

std::size_t at(int index) { return static_cast<std::size_t>(index); }

Program layer_program(int d_in, int d_out, std::vector<float> weight, Activation activation) {
  Program program;
  program.widths = {d_in, d_out};
  program.output = 1;
  program.steps = {Linear{0, 1, std::move(weight), std::vector<float>(at(d_out), 0.25f), activation}};
  return program;
}

// Rows and weights at their ranges are rounded to nothing, so the result is the integer sum: exactly, however
// many products are of one sign.
TEST(int8_sums_do_not_saturate) {
  for (Activation activation : {Activation::kNone, Activation::kRelu})
    for (int d_in : {3, 64, 500, 2048}) {
      std::vector<float> weight;
      for (int unit = 0; unit < 40; ++unit)
        for (int i = 0; i < d_in; ++i) weight.push_back(unit % 3 == 0 || (unit + i) % 7 == 0 ? -0.5f : 0.5f);
      const Program program = layer_program(d_in, 40, weight, activation);
      const auto executable = make_cpu_engine()->compile(program, Precision::kInt8, {{0, 127.0f / 1.25f}});
      for (int rows : {1, 8, 33, 600}) {
        Rows old(DType::kFloat32, rows, d_in), out(DType::kFloat32, rows, 40);
        for (int row = 0; row < rows; ++row)
          for (int i = 0; i < d_in; ++i)
            old.set(row, i, row % 4 == 1 ? -127 : (row + i) % 5 == 0 ? 126 : 127);
        executable->run(old.input(), {}, out.output(), rows, 2);
        for (int row = 0; row < rows; ++row)
          for (int unit = 0; unit < 40; ++unit) {
            double sum = 0.25;
            for (int i = 0; i < d_in; ++i)
              sum += static_cast<double>(weight[at(unit * d_in + i)]) * old.at(row, i);
            if (activation == Activation::kRelu) sum = std::max(sum, 0.0);
            CHECK(std::abs(out.at(row, unit) - sum) <= 1e-5 * std::abs(sum) + 1e-5,
                  std::to_string(out.at(row, unit)) + " is not " + std::to_string(sum) + ", " +
                      executable->description());
          }
      }
    }
}

TEST(a_weight_that_saturates_would_be_seen) {
  const int largest = cpu::largest_exact_weight();
  CHECK(largest == 127 || largest == 64, "largest exact weight " + std::to_string(largest));
}

TEST(float32_becomes_the_nearest_integer) {
  Random random(71);
  for (const auto& [dtype, least, most] :
       {std::tuple{DType::kInt8, -127.0, 127.0}, {DType::kUint8, 0.0, 255.0}})
    for (int count : {1, 7, 64, 1000}) {
      const float scale = 0.25f;  // dividing by it is exact
      std::vector<float> from{0.125f, 0.375f, -0.125f, 1e30f, -1e30f, 31.75f, 63.75f, FLT_MAX};
      while (from.size() < at(count)) from.push_back(static_cast<float>(uniform(random, -9000, 9000)) / 100);
      from.resize(at(count));
      std::vector<unsigned char> to(at(count) + 1, 0xee);
      cpu::convert(from.data(), DType::kFloat32, to.data(), dtype, at(count), scale);
      for (int i = 0; i < count; ++i) {
        const double wanted = std::clamp(std::nearbyint(static_cast<double>(from[at(i)]) * 4), least, most);
        const double got = dtype == DType::kInt8 ? static_cast<signed char>(to[at(i)]) : to[at(i)];
        CHECK(got == wanted, std::to_string(from[at(i)]) + " became " + std::to_string(got));
      }
      CHECK(to.back() == 0xee);
    }
}

TEST(int8_keeps_in_float32_what_is_not_only_multiplied) {
  Random random(72);
  int integers = 0, naturals = 0, both = 0;
  for (int i = 0; i < 2000; ++i) {
    const Program program = random_program(random);
    const Plan plan = make_plan(program, Precision::kInt8, roomy_ranges(random, program));
    std::set<ValueId> added{program.output}, multiplied;
    for (const Step& step : program.steps)
      for (ValueId input : inputs_of(step)) {
        if (std::holds_alternative<Linear>(step)) multiplied.insert(input);
        if (std::holds_alternative<Add>(step) || std::holds_alternative<Normalize>(step)) added.insert(input);
      }
    for (ValueId value = 0; value < static_cast<ValueId>(program.widths.size()); ++value) {
      const Plan::Value& planned = plan.values[at(value)];
      integers += planned.dtype == DType::kInt8;
      naturals += planned.dtype == DType::kUint8;
      both += planned.dtype == DType::kFloat32 && planned.multiplied != DType::kFloat32;
      CHECK(size_of(planned.dtype) == 1 || planned.dtype == DType::kFloat32, describe(program));
      CHECK(size_of(planned.dtype) > 1 || !added.contains(value), describe(program));
      CHECK(size_of(planned.multiplied) == 1 || !multiplied.contains(value), describe(program));
      CHECK(size_of(planned.dtype) > 1 || planned.dtype == planned.multiplied, describe(program));
    }
    // Parts are copied into a concat as they are.
    for (const Step& step : program.steps) {
      if (!std::holds_alternative<Concat>(step) || size_of(plan.values[at(output_of(step))].dtype) > 1)
        continue;
      const Plan::Value& whole = plan.values[at(output_of(step))];
      for (ValueId input : inputs_of(step)) {
        const Plan::Value& part = plan.values[at(input)];
        CHECK(size_of(part.dtype) > 1 || (part.dtype == whole.dtype && part.scale == whole.scale),
              describe(program));
      }
    }
  }
  CHECK(integers > 1000 && naturals > 100 && both > 100);
}

TEST(int8_needs_ranges) {
  Random random(73);
  const Program program = mlp_program(random, 4, 5, 6, 7);
  const auto engine = make_cpu_engine();
  Ranges ranges = roomy_ranges(random, program);
  const ValueId read = linear_inputs(program).front();
  for (const float range : {0.0f, NAN, INFINITY, -1.0f}) {
    ranges.erase(read);
    if (range != 0) ranges[read] = range;
    try {
      engine->compile(program, Precision::kInt8, ranges);
      CHECK(false, "compiled int8 without a scale");
    } catch (const Error& error) {
      CHECK(
          error.kind() == ErrorKind::kArray && std::string(error.what()).starts_with("int8 needs the range"),
          error.what());
    }
  }
}

// An integer looks as finite as any other, whatever overflowed before it was rounded.
TEST(int8_hides_no_overflow) {
  Random random(74);
  for (Activation activation : {Activation::kNone, Activation::kRelu}) {
    Program program;
    program.widths = {2, 2, 2};
    program.output = 2;
    program.steps = {Linear{0, 1, {1e20f, 1e20f, -1e20f, 1e20f}, {0, 0}, activation},
                     Linear{1, 2, {1, 0, 0, 1}, {0, 0}, Activation::kNone}};
    const auto executable = make_cpu_engine()->compile(program, Precision::kInt8, {{0, 1e19f}, {1, 1e38f}});
    Rows old(DType::kFloat32, 3, 2), out(DType::kFloat32, 3, 2);
    old.set(0, 0, 1);
    old.set(1, 0, 3e19);
    old.set(2, 1, NAN);
    try {
      executable->run(old.input(), {}, out.output(), 3, 1);
      CHECK(false, "nobody saw an overflow");
    } catch (const NonFiniteRow& error) {
      CHECK(error.row() == 1 && error.array() == "result", error.what());
    }
  }
}

TEST(int8_refuses_layers_that_32_bits_do_not_hold) {
  const Linear layer{0, 1, std::vector<float>(70'000, 1.0f), {0}, Activation::kNone};
  try {
    cpu::make_integer_linear(layer, {70'000, DType::kInt8, DType::kInt8, 1}, {1, DType::kFloat32}, {8}, 64);
    CHECK(false, "made a layer of 70,000");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kUnsupported);
  }
}

// What the check of this CPU is for: with larger weights than it finds, sums are wrong, or 127 is what it
// found.
TEST(the_check_of_8_bit_products_is_sharp) {
  if (cpu::largest_exact_weight() == 127) return;
  constexpr int kWidth = 64;
  const Linear layer{0, 1, std::vector<float>(kWidth, 127.0f), {0}, Activation::kNone};
  const auto linear = cpu::make_integer_linear(layer, {kWidth, DType::kUint8, DType::kUint8, 1},
                                               {1, DType::kFloat32}, {8}, 127);
  std::vector<unsigned char> rows(8 * kWidth, 255);
  constexpr std::size_t kAligned = 64;
  std::vector<char> scratch(linear->scratch_bytes() + kAligned);  // how much it asks for depends on the CPU
  void* start = scratch.data();
  std::size_t space = scratch.size();
  float out[8];
  linear->run(0, rows.data(), out, std::align(kAligned, linear->scratch_bytes(), start, space));
  CHECK(out[0] != 255.0f * 127 * kWidth);
}

}  // namespace
}  // namespace fct::testing
