#include "layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "device.h"
#include "plan.h"

namespace fct::cuda {
namespace {

constexpr float kLargestFloat8 = 448;

std::size_t at(ValueId value) { return static_cast<std::size_t>(value); }

// See Note [Gathered concat]. What such a concat reads is stored as the concat is.
std::vector<bool> gathered_concats(const Program& program) {
  std::vector<bool> gathered(program.widths.size(), false);
  for (ValueId value : linear_inputs(program)) gathered[at(value)] = true;
  for (ValueId input : {program.old, program.side, program.output})
    if (input >= 0) gathered[at(input)] = false;
  for (const Step& step : program.steps) {
    if (!std::holds_alternative<Concat>(step)) gathered[at(output_of(step))] = false;
    if (std::holds_alternative<Linear>(step)) continue;
    for (ValueId input : inputs_of(step)) gathered[at(input)] = false;
  }
  return gathered;
}

}  // namespace

std::int64_t padded_width(std::int64_t width) { return (width + kPadding - 1) / kPadding * kPadding; }

float float8_scale(float range) {
  if (range == 0) return 1;
  return std::exp2(std::clamp(std::floor(std::log2(kLargestFloat8 / 2 / range)), -64.f, 64.f));
}

std::int64_t Layout::Value::padded() const {
  return std::accumulate(parts.begin(), parts.end(), std::int64_t{0},
                         [](std::int64_t sum, int part) { return sum + padded_width(part); });
}

std::size_t Layout::bytes_per_row() const {
  return std::accumulate(slot_bytes.begin(), slot_bytes.end(), std::size_t{0});
}

Layout make_layout(const Program& program, Precision precision, const Ranges& ranges) {
  const auto types = storage_types(program, precision);
  const auto gathered = gathered_concats(program);
  std::vector<float> scales(types.size(), 1);
  if (precision == Precision::kFp8) {
    const auto range = shared_ranges(program, types, DType::kFloat8, ranges, precision);
    for (std::size_t value = 0; value < types.size(); ++value)
      if (types[value] == DType::kFloat8) scales[value] = float8_scale(range[value]);
  }

  Layout layout;
  for (std::size_t value = 0; value < types.size(); ++value) {
    Layout::Value placed;
    placed.dtype = types[value];
    placed.scale = scales[value];
    placed.owner = static_cast<ValueId>(value);
    placed.parts = {program.widths[value]};
    layout.values.push_back(std::move(placed));
  }
  // See Note [Gathered concat]. What a concat reads is never gathered itself.
  for (const Step& step : program.steps) {
    const ValueId whole = output_of(step);
    if (!gathered[at(whole)]) continue;
    layout.values[at(whole)].parts.clear();
    for (ValueId input : inputs_of(step)) {
      Layout::Value& part = layout.values[at(input)];
      // Else it lies in another concat, or in this one already, or is stored otherwise.
      if (part.owner == input && part.dtype == layout.values[at(whole)].dtype) {
        part.owner = whole;
        part.column = layout.values[at(whole)].padded();
      }
      layout.values[at(whole)].parts.push_back(program.width(input));
    }
  }
  std::vector<std::size_t> bytes;
  std::vector<ValueId> owner;
  for (std::size_t value = 0; value < types.size(); ++value) {
    owner.push_back(layout.values[value].owner);
    layout.values[value].stride = layout.values[at(owner[value])].padded();
    bytes.push_back(static_cast<std::size_t>(layout.values[value].stride) * size_of(types[value]));
  }
  Slots slots = assign_slots(program, bytes, owner);
  for (std::size_t value = 0; value < types.size(); ++value) layout.values[value].slot = slots.slot[value];
  layout.slot_bytes = std::move(slots.bytes);
  return layout;
}

}  // namespace fct::cuda
