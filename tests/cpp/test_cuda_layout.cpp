#include <algorithm>
#include <cmath>
#include <map>

#include "check.h"
#include "cuda/device.h"
#include "cuda/ring.h"
#include "cuda_cases.h"

namespace fct::testing {
namespace {

const cuda::Layout::Value& placed(const cuda::Layout& layout, ValueId value) {
  return layout.values.at(static_cast<std::size_t>(value));
}

// The columns of a slot that hold a value, in bytes from the row's begin.
std::pair<std::size_t, std::size_t> bytes_of(const cuda::Layout& layout, ValueId value) {
  const auto& at = placed(layout, value);
  const std::size_t first = static_cast<std::size_t>(at.column) * size_of(at.dtype);
  return {first, first + static_cast<std::size_t>(at.padded()) * size_of(at.dtype)};
}

TEST(cuda_layout_never_holds_two_live_values_in_one_place) {
  Random random(91);
  for (int i = 0; i < 3000; ++i) {
    const Program program = random_program(random);
    const Precision precision = i % 2 == 0 ? Precision::kTf32 : Precision::kFp16;
    const cuda::Layout layout = cuda::make_layout(program, precision, {});
    std::map<ValueId, std::size_t> last;
    for (std::size_t index = 0; index < program.steps.size(); ++index)
      for (ValueId input : inputs_of(program.steps[index])) last[input] = index;
    last[program.output] = program.steps.size();
    std::vector<ValueId> written;
    auto write = [&](ValueId value, std::size_t now) {
      const auto& at = placed(layout, value);
      const auto [first, end] = bytes_of(layout, value);
      CHECK(end <= layout.slot_bytes.at(static_cast<std::size_t>(at.slot)), describe(program));
      CHECK(at.column % cuda::kPadding == 0 && at.stride % cuda::kPadding == 0 && at.stride >= at.padded());
      for (ValueId other : written) {
        const auto [other_first, other_end] = bytes_of(layout, other);
        const bool overlaps = placed(layout, other).slot == at.slot && first < other_end && other_first < end;
        const bool is_live = last.contains(other) && last[other] >= now;
        CHECK(!overlaps || !is_live || placed(layout, other).owner == value || at.owner == other,
              "v" + std::to_string(value) + " over v" + std::to_string(other) + " in " + describe(program));
      }
      written.push_back(value);
    };
    write(program.old, 0);
    if (program.has_side()) write(program.side, 0);
    for (std::size_t index = 0; index < program.steps.size(); ++index)
      write(output_of(program.steps[index]), index);
  }
}

TEST(cuda_float8_scales_leave_room_and_agree_within_a_concat) {
  for (float range : {1e-30f, 0.003f, 0.5f, 1.f, 7.f, 448.f, 1e6f}) {
    const float scale = cuda::float8_scale(range);
    CHECK(std::exp2(std::round(std::log2(scale))) == scale, std::to_string(range));
    CHECK(range * scale <= 224 && (range * scale > 112 || range < 1e-10f), std::to_string(range));
  }
  CHECK(cuda::float8_scale(0) == 1);
  Random random(92);
  const Program program = paper_program(random, 8, 8, 8, 16);
  Ranges ranges = all_ranges(program, 1);
  for (const Step& step : program.steps)
    if (const auto* concat = std::get_if<Concat>(&step)) {
      ranges[concat->inputs.front()] = 300;
      const auto layout = cuda::make_layout(program, Precision::kFp8, ranges);
      for (ValueId input : concat->inputs)
        CHECK(placed(layout, input).scale == placed(layout, concat->output).scale);
    }
}

TEST(cuda_chosen_blocks_are_never_half_empty) {
  const std::vector<std::int64_t> blocks{32768, 8192, 2048, 512, 128};
  const std::vector<std::size_t> all{0, 1, 2, 3, 4}, some{1, 3};
  CHECK(cuda::choose_block(blocks, all, 1 << 20) == 0);
  CHECK(cuda::choose_block(blocks, all, 32768) == 0);
  CHECK(cuda::choose_block(blocks, all, 16385) == 0);
  CHECK(cuda::choose_block(blocks, all, 16384) == 1);
  CHECK(cuda::choose_block(blocks, all, 1) == 4);
  CHECK(cuda::choose_block(blocks, some, 1) == 3);
  CHECK(cuda::choose_block(blocks, some, 100000) == 1);
}

}  // namespace
}  // namespace fct::testing
