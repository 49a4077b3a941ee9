// Casts, checks and cuts around a function of float32 rows.
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "check.h"
#include "fct/engine.h"
#include "fct/error.h"

namespace fct::testing {
namespace {

// new[row] = {old[0] + side[0], old[1]}; a side dim of 0 leaves side out.
std::unique_ptr<Executable> sums(int side_dim, bool normalize, std::vector<std::int64_t>* calls = nullptr) {
  auto function = [=](const float* old, const float* side, float* out, std::int64_t rows) {
    static std::mutex mutex;
    if (calls != nullptr) {
      const std::lock_guard lock(mutex);
      calls->push_back(rows);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      out[2 * row] = old[2 * row] + (side != nullptr ? side[row] : 0.f);
      out[2 * row + 1] = old[2 * row + 1];
    }
  };
  return make_function_executable(function, {2, side_dim, 2, normalize, "sums"});
}

std::pair<std::string, std::int64_t> bad_row(const Executable& executable, const std::vector<float>& old,
                                             const std::vector<float>& side, std::vector<float>& out) {
  try {
    executable.run({old.data()}, {side.data()}, {out.data()}, static_cast<std::int64_t>(side.size()), 1);
  } catch (const NonFiniteRow& error) {
    return {error.array(), error.row()};
  }
  return {"", -1};
}

}  // namespace

TEST(function_runs_on_rows_where_they_lie) {
  const std::vector<float> old{1, 2, 3, 4}, side{10, 20};
  std::vector<float> out(4);
  sums(1, false)->run({old.data()}, {side.data()}, {out.data()}, 2, 1);
  CHECK(out == (std::vector<float>{11, 2, 23, 4}));
  sums(0, false)->run({old.data()}, {}, {out.data()}, 2, 1);
  CHECK(out == old);
}

TEST(function_gets_float32_of_half_precision_rows_and_gives_it) {
  const std::vector<std::uint16_t> old{0x3c00, 0x4000}, side{0x4200};  // 1, 2 and 3
  std::vector<std::uint16_t> out(2);
  sums(1, false)->run({old.data(), DType::kFloat16}, {side.data(), DType::kFloat16},
                      {out.data(), DType::kFloat16}, 1, 1);
  CHECK(out == (std::vector<std::uint16_t>{0x4400, 0x4000}));  // 4, 2
}

TEST(function_results_are_normalised_on_request) {
  const std::vector<float> old{3, 4};
  std::vector<float> out(2);
  sums(0, true)->run({old.data()}, {}, {out.data()}, 1, 1);
  CHECK(std::abs(out[0] - 0.6f) < 1e-6f && std::abs(out[1] - 0.8f) < 1e-6f);
}

TEST(function_is_called_with_a_bounded_number_of_rows) {
  constexpr std::int64_t kRows = 65536 * 2 + 5;
  std::vector<float> old(2 * kRows), out(2 * kRows);
  for (std::size_t i = 0; i < old.size(); ++i) old[i] = static_cast<float>(i % 1000);
  std::vector<std::int64_t> calls;
  sums(0, false, &calls)->run({old.data()}, {}, {out.data()}, kRows, 1);
  CHECK(calls == (std::vector<std::int64_t>{65536, 65536, 5}));
  CHECK(out == old);
}

TEST(function_names_the_first_bad_row_of_inputs_and_results) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr std::int64_t kRows = 65536 + 9;
  std::vector<float> old(2 * kRows, 1.f), side(kRows, 1.f), out(2 * kRows);
  const auto executable = sums(1, false);
  CHECK(bad_row(*executable, old, side, out).second == -1);
  side[kRows - 2] = kNan;
  CHECK(bad_row(*executable, old, side, out) == std::make_pair(std::string("side"), kRows - 2));
  old[2 * (kRows - 3)] = kNan;
  CHECK(bad_row(*executable, old, side, out) == std::make_pair(std::string("old"), kRows - 3));
  old[8] = side[4] = kMax;
  CHECK(bad_row(*executable, old, side, out) == std::make_pair(std::string("result"), std::int64_t{4}));
  old[0] = kNan;
  CHECK(bad_row(*executable, old, side, out) == std::make_pair(std::string("old"), std::int64_t{0}));
}

}  // namespace fct::testing
