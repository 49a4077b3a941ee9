#include "plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "fct/error.h"

namespace fct {
namespace {

std::size_t at(ValueId value) { return static_cast<std::size_t>(value); }

// The output, and what any step but a linear layer or a concat reads.
std::set<ValueId> values_beside_products(const Program& program) {
  std::set<ValueId> values{program.output};
  for (const Step& step : program.steps)
    if (!std::holds_alternative<Linear>(step) && !std::holds_alternative<Concat>(step))
      for (ValueId input : inputs_of(step)) values.insert(input);
  return values;
}

// Inputs and output of a concat that is stored as `low`; nothing of any other step.
std::vector<ValueId> stored_together(const Step& step, const std::vector<DType>& types, DType low) {
  if (!std::holds_alternative<Concat>(step) || types[at(output_of(step))] != low) return {};
  auto values = inputs_of(step);
  values.push_back(output_of(step));
  return values;
}

// Which values may be negative. Parts of a concat of 8-bit integers are stored alike.
std::vector<bool> signed_values(const Program& program, const std::vector<DType>& types) {
  std::vector<bool> is_signed(program.widths.size(), true);
  for (const Step& step : program.steps) {
    const auto* linear = std::get_if<Linear>(&step);
    if (linear != nullptr) is_signed[at(linear->output)] = linear->activation != Activation::kRelu;
    if (const auto* concat = std::get_if<Concat>(&step))
      is_signed[at(concat->output)] = std::any_of(concat->inputs.begin(), concat->inputs.end(),
                                                  [&](ValueId v) { return is_signed[at(v)]; });
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (const Step& step : program.steps) {
      const auto related = stored_together(step, types, DType::kInt8);
      const bool any =
          std::any_of(related.begin(), related.end(), [&](ValueId v) { return is_signed[at(v)]; });
      for (ValueId value : related)
        if (any && !is_signed[at(value)]) {
          is_signed[at(value)] = true;
          changed = true;
        }
    }
  }
  return is_signed;
}

// Integers for what linear layers read. A quarter more than its range still fits: some thousand rows do not
// hold the largest values of millions. What is larger yet is cut.
void plan_integers(const Program& program, const Ranges& ranges, std::vector<Plan::Value>& values) {
  constexpr float kRoom = 1.25f, kLeastRange = 1e-30f;  // so that its reciprocal is finite
  std::vector<DType> types;
  for (const Plan::Value& value : values) types.push_back(value.dtype);
  const auto range = shared_ranges(program, types, DType::kInt8, ranges, Precision::kInt8);
  const auto is_signed = signed_values(program, types);
  std::set<ValueId> multiplied;
  for (ValueId value : linear_inputs(program)) multiplied.insert(value);
  for (std::size_t value = 0; value < values.size(); ++value) {
    Plan::Value& planned = values[value];
    if (planned.dtype != DType::kInt8 && !multiplied.contains(static_cast<ValueId>(value))) continue;
    planned.multiplied = is_signed[value] ? DType::kInt8 : DType::kUint8;
    planned.scale = std::max(range[value], kLeastRange) * (kRoom / (is_signed[value] ? 127.0f : 255.0f));
    if (planned.dtype == DType::kInt8) planned.dtype = planned.multiplied;
  }
}

class SlotAllocator {
 public:
  // The tightest free slot that is large enough, else the largest free one grown, else a new one.
  int take(std::size_t bytes) {
    int best = -1;
    for (int slot = 0; slot < static_cast<int>(bytes_.size()); ++slot) {
      if (!free_[at(slot)]) continue;
      if (best < 0) best = slot;
      const bool fits = bytes_[at(slot)] >= bytes, best_fits = bytes_[at(best)] >= bytes;
      if (fits ? (!best_fits || bytes_[at(slot)] < bytes_[at(best)])
               : (!best_fits && bytes_[at(slot)] > bytes_[at(best)]))
        best = slot;
    }
    if (best < 0) {
      best = static_cast<int>(bytes_.size());
      bytes_.push_back(0);
      free_.push_back(true);
    }
    bytes_[at(best)] = std::max(bytes_[at(best)], bytes);
    free_[at(best)] = false;
    return best;
  }
  void release(int slot) { free_[at(slot)] = true; }
  const std::vector<std::size_t>& bytes() const { return bytes_; }

 private:
  std::vector<std::size_t> bytes_;
  std::vector<bool> free_;
};

}  // namespace

std::vector<DType> storage_types(const Program& program, Precision precision) {
  std::vector<DType> types(program.widths.size(), DType::kFloat32);
  const DType low = storage_of(precision);
  if (low == DType::kFloat32) return types;
  std::set<ValueId> too_coarse;
  if (needs_ranges(precision)) too_coarse = values_beside_products(program);
  const DType finer = low == DType::kFloat8 ? DType::kBFloat16 : DType::kFloat32;
  // Backwards, so that what a concat gathers is known to be short before its inputs are looked at.
  for (auto step = program.steps.rbegin(); step != program.steps.rend(); ++step) {
    const bool is_linear = std::holds_alternative<Linear>(*step);
    const bool is_low_concat = std::holds_alternative<Concat>(*step) && types[at(output_of(*step))] == low;
    if (is_linear || is_low_concat)
      for (ValueId input : inputs_of(*step)) types[at(input)] = too_coarse.contains(input) ? finer : low;
  }
  return types;
}

std::vector<float> shared_ranges(const Program& program, const std::vector<DType>& types, DType low,
                                 const Ranges& ranges, Precision precision) {
  std::vector<float> range(program.widths.size(), 0);
  for (ValueId value : linear_inputs(program)) {
    const auto found = ranges.find(value);
    if (found == ranges.end() || !(found->second >= 0) || !std::isfinite(found->second))
      throw Error(ErrorKind::kArray, std::string(name_of(precision)) +
                                         " needs the range of every value that a linear layer reads; value " +
                                         std::to_string(value) + " has none that is finite");
    range[at(value)] = found->second;
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (const Step& step : program.steps) {
      const auto related = stored_together(step, types, low);
      float largest = 0;
      for (ValueId value : related) largest = std::max(largest, range[at(value)]);
      for (ValueId value : related) changed |= std::exchange(range[at(value)], largest) != largest;
    }
  }
  return range;
}

Slots assign_slots(const Program& program, const std::vector<std::size_t>& bytes,
                   const std::vector<ValueId>& owner) {
  std::vector<std::size_t> last_read(program.widths.size(), 0);
  for (std::size_t index = 0; index < program.steps.size(); ++index)
    for (ValueId input : inputs_of(program.steps[index])) last_read[at(owner[at(input)])] = index;
  last_read[at(owner[at(program.output)])] = program.steps.size();

  Slots slots{std::vector<int>(program.widths.size(), -1), {}};
  SlotAllocator allocator;
  auto place = [&](ValueId value) {
    int& taken = slots.slot[at(owner[at(value)])];
    if (taken < 0) taken = allocator.take(bytes[at(owner[at(value)])]);
    slots.slot[at(value)] = taken;
  };
  place(program.old);
  if (program.has_side()) place(program.side);
  for (std::size_t index = 0; index < program.steps.size(); ++index) {
    place(output_of(program.steps[index]));  // before the inputs are released: no step works in place
    std::set<ValueId> inputs;
    for (ValueId input : inputs_of(program.steps[index])) inputs.insert(owner[at(input)]);
    for (ValueId input : inputs)
      if (last_read[at(input)] == index) allocator.release(slots.slot[at(input)]);
  }
  slots.bytes = allocator.bytes();
  return slots;
}

std::size_t Plan::bytes_per_row() const {
  return std::accumulate(slot_bytes.begin(), slot_bytes.end(), std::size_t{0});
}

Plan make_plan(const Program& program, Precision precision, const Ranges& ranges) {
  Plan plan;
  for (const DType type : storage_types(program, precision)) {
    Plan::Value value;
    value.dtype = value.multiplied = type;
    plan.values.push_back(value);
  }
  if (precision == Precision::kInt8) plan_integers(program, ranges, plan.values);
  std::vector<std::size_t> bytes;
  for (std::size_t value = 0; value < plan.values.size(); ++value)
    bytes.push_back(static_cast<std::size_t>(program.widths[value]) * size_of(plan.values[value].dtype));
  std::vector<ValueId> owner(plan.values.size());
  std::iota(owner.begin(), owner.end(), 0);
  Slots slots = assign_slots(program, bytes, owner);
  for (std::size_t value = 0; value < plan.values.size(); ++value)
    plan.values[value].slot = slots.slot[value];
  plan.slot_bytes = std::move(slots.bytes);
  return plan;
}

}  // namespace fct
