// Note [Same bytes] in csrc/cpu/cpu_executable.cpp: a row's result depends on nothing but the row.
#include <algorithm>
#include <mutex>
#include <tuple>
#include <utility>

#include "bounded.h"
#include "check.h"
#include "cpu/cpu_executable.h"
#include "random_programs.h"
#include "reference_library.h"

namespace fct::testing {
namespace {

// One call over all rows is the yardstick; then any stretch of rows, among other neighbours, by any number of
// threads.
void check_same_bytes(Random& random, const Program& program, const Executable& executable, int rows,
                      int repeats) {
  const DType in = uniform(random, 0, 1) == 0 ? DType::kFloat32 : DType::kFloat16;
  const Rows old = Rows::normal(random, in, rows, executable.old_dim());
  const Rows side = Rows::normal(random, in, rows, executable.side_dim());
  Rows expected(DType::kFloat32, rows, executable.new_dim());
  executable.run(old.input(), side.input(), expected.output(), rows, 1);
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const int limit = repeat % 2 == 0 ? 40 : rows;
    const int count = uniform(random, 1, std::min(limit, rows)), first = uniform(random, 0, rows - count);
    const int place = uniform(random, 0, 9), threads = uniform(random, 1, 5);
    // The stretch is moved to another place, between rows it has never seen.
    Rows other_old = Rows::normal(random, in, count + 20, executable.old_dim());
    Rows other_side = Rows::normal(random, in, count + 20, executable.side_dim());
    std::copy(old.row(first), old.row(first + count), other_old.row(place));
    std::copy(side.row(first), side.row(first + count), other_side.row(place));
    Rows out(DType::kFloat32, count + 20, executable.new_dim());
    executable.run(other_old.input(), other_side.input(), out.output(), count + 20, threads);
    const std::string what = "rows " + std::to_string(first) + "+" + std::to_string(count) + " moved to " +
                             std::to_string(place) + ", threads " + std::to_string(threads) + ", " +
                             describe(program) + ", " + executable.description();
    CHECK(std::equal(out.row(place), out.row(place + count), expected.row(first)), what);
    // The same stretch alone, read where it lies.
    executable.run(old.input(first), side.input(first), out.output(), count, threads);
    CHECK(std::equal(out.row(0), out.row(count), expected.row(first)), what);
  }
}

TEST(same_bytes_from_plain_loops) {
  Random random(31);
  for (int i = 0; i < 12; ++i)
    for (Precision precision : {Precision::kFp32, Precision::kBf16, Precision::kInt8}) {
      const Program program = random_program(random, 30);
      const Ranges ranges = roomy_ranges(random, program);
      check_same_bytes(random, program, cpu::CpuExecutable(program, precision, ReferenceLibrary(), ranges),
                       600, 6);
    }
}

TEST(same_bytes_from_the_matrix_library) {
  Random random(32);
  const auto engine = make_cpu_engine();
  for (Precision precision : engine->precisions()) {
    for (int i = 0; i < 30; ++i) {
      const Program program = random_program(random);
      check_same_bytes(random, program, *engine->compile(program, precision, roomy_ranges(random, program)),
                       1200, 12);
    }
    for (int inner : {1030, 2048, 4500, 20000}) {
      const Program program = mlp_program(random, 32, 40, 24, inner);
      check_same_bytes(random, program, *engine->compile(program, precision, roomy_ranges(random, program)),
                       600, 6);
    }
  }
}

// A library that sums in another order for few rows must lose its small tiles, not change the bytes.
TEST(tiles_that_round_differently_are_dropped) {
  Random random(33);
  const Program program = paper_program(random, 24, 24, 16, 64);
  for (Precision precision : {Precision::kFp32, Precision::kBf16}) {
    for (const auto& [backwards_below, kept] : {std::pair{8, "tiles 512 256 128 64 32 16 8;"},
                                                {9, "tiles 512 256 128 64 32 16;"},
                                                {100, "tiles 512 256 128;"},
                                                {300, "tiles 512;"}}) {
      const cpu::CpuExecutable executable(program, precision,
                                          ReferenceLibrary({.backwards_below = backwards_below}));
      CHECK(executable.description().starts_with(kept), executable.description());
      check_same_bytes(random, program, executable, 550, 4);
    }
  }
}

// Writes down the rows of every tile.
class NotingLibrary : public cpu::LinearLibrary {
 public:
  std::unique_ptr<cpu::LinearOp> make(const Linear& layer, const cpu::Operand& input,
                                      const cpu::Operand& output,
                                      const std::vector<int>& tile_rows) const override {
    return std::make_unique<Op>(ReferenceLibrary().make(layer, input, output, tile_rows), tile_rows, *this);
  }
  std::vector<int> noted() const {
    std::sort(rows_.rbegin(), rows_.rend());
    return std::exchange(rows_, {});
  }

 private:
  struct Op : cpu::LinearOp {
    Op(std::unique_ptr<cpu::LinearOp> real, std::vector<int> tile_rows, const NotingLibrary& library)
        : real_(std::move(real)), tile_rows_(std::move(tile_rows)), library_(library) {}
    void run(std::size_t tile, const void* input, void* output, void* scratch) const override {
      real_->run(tile, input, output, scratch);
      const std::lock_guard lock(library_.mutex_);
      library_.rows_.push_back(tile_rows_[tile]);
    }
    std::size_t scratch_bytes() const override { return real_->scratch_bytes(); }
    std::string kernel() const override { return real_->kernel(); }

    std::unique_ptr<cpu::LinearOp> real_;
    std::vector<int> tile_rows_;
    const NotingLibrary& library_;
  };

  mutable std::mutex mutex_;
  mutable std::vector<int> rows_;
};

// What another thread is still busy with counts as its share: nobody is left with ever smaller tiles of what
// remains.
TEST(threads_share_a_call_in_tiles_of_one_size) {
  Random random(34);
  const NotingLibrary library;
  const Linear layer{0, 1, std::vector<float>(32, 1), std::vector<float>(4), Activation::kNone};
  const Program program{{8, 4}, 0, -1, 1, {layer}};
  const cpu::CpuExecutable executable(program, Precision::kFp32, library);
  library.noted();
  for (const auto& [rows, threads, tiles] :
       std::vector<std::tuple<int, int, std::vector<int>>>{{256, 2, {128, 128}},
                                                           {512, 2, {256, 256}},
                                                           {384, 2, {128, 128, 64, 64}},
                                                           {500, 2, {256, 256}},
                                                           {512, 4, {128, 128, 128, 128}},
                                                           {2048, 2, {512, 512, 256, 256, 256, 256}},
                                                           {40, 1, {32, 8}}}) {
    const Rows old = Rows::normal(random, DType::kFloat32, rows, 8);
    Rows out(DType::kFloat32, rows, 4);
    executable.run(old.input(), {}, out.output(), rows, threads);
    const auto noted = library.noted();
    std::string what = std::to_string(rows) + " rows, " + std::to_string(threads) + " threads:";
    for (int tile : noted) what.append(" ").append(std::to_string(tile));
    CHECK(noted == tiles, what);
  }
}

}  // namespace
}  // namespace fct::testing
