#include <algorithm>
#include <map>
#include <set>

#include "check.h"
#include "random_programs.h"
#include "transformation/plan.h"

namespace fct::testing {
namespace {

// The index of the last step that reads each value; the output is read after the last step.
std::map<ValueId, std::size_t> last_reads(const Program& program) {
  std::map<ValueId, std::size_t> last;
  for (std::size_t index = 0; index < program.steps.size(); ++index)
    for (ValueId input : inputs_of(program.steps[index])) last[input] = index;
  last[program.output] = program.steps.size();
  return last;
}

void check_no_live_value_is_overwritten(const Program& program, const Plan& plan) {
  const auto last = last_reads(program);
  std::map<int, ValueId> holder;  // slot -> the value it holds
  auto write = [&](ValueId value, std::size_t now) {
    const auto& placed = plan.values.at(static_cast<std::size_t>(value));
    const auto slot = static_cast<std::size_t>(placed.slot);
    CHECK(slot < plan.slot_bytes.size(), describe(program));
    CHECK(plan.slot_bytes[slot] >= static_cast<std::size_t>(program.width(value)) * size_of(placed.dtype),
          describe(program));
    const auto held = holder.find(placed.slot);
    if (held != holder.end() && last.contains(held->second))
      CHECK(last.at(held->second) < now,
            "v" + std::to_string(value) + " over a live value in " + describe(program));
    holder[placed.slot] = value;
  };
  write(program.old, 0);
  if (program.has_side()) write(program.side, 0);
  for (std::size_t index = 0; index < program.steps.size(); ++index)
    write(output_of(program.steps[index]), index);
}

TEST(slots_never_hold_two_live_values) {
  Random random(11);
  for (int i = 0; i < 3000; ++i) {
    const Program program = random_program(random);
    for (Precision precision : {Precision::kFp32, Precision::kBf16})
      check_no_live_value_is_overwritten(program, make_plan(program, precision));
  }
}

TEST(a_chain_of_layers_needs_two_slots) {
  Random random(12);
  ProgramBuilder builder(random);
  const ValueId old = builder.value(16);
  ValueId last = old;
  for (int i = 0; i < 10; ++i) last = builder.linear(last, 16);
  const Program program = builder.finish(old, -1, last);
  CHECK(make_plan(program, Precision::kFp32).bytes_per_row() == 2 * 16 * sizeof(float));
}

// bf16: what a linear layer reads, directly or gathered by a concat, is kept short; all else stays in
// float32.
std::set<ValueId> short_values(const Program& program) {
  std::set<ValueId> values;
  for (std::size_t before = program.widths.size() + 1; before != values.size();) {
    before = values.size();
    for (const Step& step : program.steps)
      if (std::holds_alternative<Linear>(step) ||
          (std::holds_alternative<Concat>(step) && values.contains(output_of(step))))
        for (ValueId input : inputs_of(step)) values.insert(input);
  }
  return values;
}

TEST(bf16_keeps_short_what_linear_layers_read) {
  Random random(13);
  for (int i = 0; i < 2000; ++i) {
    const Program program = random_program(random);
    const auto expected = short_values(program);
    const Plan plan = make_plan(program, Precision::kBf16), full = make_plan(program, Precision::kFp32);
    for (ValueId value = 0; value < static_cast<ValueId>(program.widths.size()); ++value) {
      const auto& placed = plan.values[static_cast<std::size_t>(value)];
      CHECK((placed.dtype == DType::kBFloat16) == expected.contains(value), describe(program));
      CHECK(full.values[static_cast<std::size_t>(value)].dtype == DType::kFloat32);
    }
  }
}

TEST(fp8_keeps_in_bfloat16_what_is_not_only_multiplied) {
  Random random(14);
  int float8 = 0, bfloat16 = 0;
  for (int i = 0; i < 2000; ++i) {
    const Program program = random_program(random);
    std::set<ValueId> added{program.output}, multiplied;
    for (const Step& step : program.steps)
      for (ValueId input : inputs_of(step)) {
        if (std::holds_alternative<Linear>(step)) multiplied.insert(input);
        if (std::holds_alternative<Add>(step) || std::holds_alternative<Normalize>(step)) added.insert(input);
      }
    const auto types = storage_types(program, Precision::kFp8);
    for (ValueId value = 0; value < static_cast<ValueId>(program.widths.size()); ++value) {
      const DType type = types[static_cast<std::size_t>(value)];
      float8 += type == DType::kFloat8;
      bfloat16 += type == DType::kBFloat16;
      CHECK(type != DType::kFloat8 || !added.contains(value), describe(program));
      CHECK(type != DType::kBFloat16 || added.contains(value), describe(program));
      CHECK(type != DType::kFloat32 || !multiplied.contains(value), describe(program));
    }
  }
  CHECK(float8 > 1000 && bfloat16 > 100);
}

}  // namespace
}  // namespace fct::testing
