#include "plan.h"

#include <algorithm>
#include <numeric>
#include <set>

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
  if (low == DType::kFloat8) too_coarse = values_beside_products(program);
  // Backwards, so that what a concat gathers is known to be short before its inputs are looked at.
  for (auto step = program.steps.rbegin(); step != program.steps.rend(); ++step) {
    const bool is_linear = std::holds_alternative<Linear>(*step);
    const bool is_low_concat = std::holds_alternative<Concat>(*step) && types[at(output_of(*step))] == low;
    if (is_linear || is_low_concat)
      for (ValueId input : inputs_of(*step))
        types[at(input)] = too_coarse.contains(input) ? DType::kBFloat16 : low;
  }
  return types;
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

Plan make_plan(const Program& program, Precision precision) {
  const auto types = storage_types(program, precision);
  std::vector<std::size_t> bytes;
  for (std::size_t value = 0; value < types.size(); ++value)
    bytes.push_back(static_cast<std::size_t>(program.widths[value]) * size_of(types[value]));
  std::vector<ValueId> owner(types.size());
  std::iota(owner.begin(), owner.end(), 0);
  Slots slots = assign_slots(program, bytes, owner);

  Plan plan;
  for (std::size_t value = 0; value < types.size(); ++value)
    plan.values.push_back({types[value], slots.slot[value]});
  plan.slot_bytes = std::move(slots.bytes);
  return plan;
}

}  // namespace fct
