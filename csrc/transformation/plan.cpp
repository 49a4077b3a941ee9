#include "plan.h"

#include <algorithm>
#include <numeric>

namespace fct {
namespace {

std::size_t at(ValueId value) { return static_cast<std::size_t>(value); }

std::vector<DType> storage_types(const Program& program, Precision precision) {
  std::vector<DType> types(program.widths.size(), DType::kFloat32);
  if (precision == Precision::kFp32) return types;
  // Backwards, so that what a concat gathers is known to be bfloat16 before its inputs are looked at.
  for (auto step = program.steps.rbegin(); step != program.steps.rend(); ++step) {
    const bool is_linear = std::holds_alternative<Linear>(*step);
    const bool is_low_concat =
        std::holds_alternative<Concat>(*step) && types[at(output_of(*step))] == DType::kBFloat16;
    if (is_linear || is_low_concat)
      for (ValueId input : inputs_of(*step)) types[at(input)] = DType::kBFloat16;
  }
  return types;
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

std::size_t Plan::bytes_per_row() const {
  return std::accumulate(slot_bytes.begin(), slot_bytes.end(), std::size_t{0});
}

Plan make_plan(const Program& program, Precision precision) {
  const auto types = storage_types(program, precision);
  std::vector<std::size_t> last_read(program.widths.size(), 0);
  for (std::size_t index = 0; index < program.steps.size(); ++index)
    for (ValueId input : inputs_of(program.steps[index])) last_read[at(input)] = index;
  last_read[at(program.output)] = program.steps.size();

  Plan plan;
  plan.values.resize(program.widths.size());
  SlotAllocator slots;
  auto place = [&](ValueId value) {
    auto& placed = plan.values[at(value)];
    placed.dtype = types[at(value)];
    placed.slot = slots.take(static_cast<std::size_t>(program.width(value)) * size_of(placed.dtype));
  };
  place(program.old);
  if (program.has_side()) place(program.side);
  for (std::size_t index = 0; index < program.steps.size(); ++index) {
    place(output_of(program.steps[index]));  // before the inputs are released: no step works in place
    std::vector<ValueId> inputs = inputs_of(program.steps[index]);
    std::sort(inputs.begin(), inputs.end());
    inputs.erase(std::unique(inputs.begin(), inputs.end()), inputs.end());
    for (ValueId input : inputs)
      if (last_read[at(input)] == index) slots.release(plan.values[at(input)].slot);
  }
  plan.slot_bytes = slots.bytes();
  return plan;
}

}  // namespace fct
