#include <algorithm>
#include <filesystem>
#include <mutex>
#include <thread>

#include "check.h"
#include "fct/error.h"
#include "fct/pipeline.h"
#include "random_programs.h"

namespace fct::testing {
namespace {

using namespace std::chrono_literals;

std::ptrdiff_t threads_alive() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"),
                       std::filesystem::directory_iterator());
}

// A joined thread takes the kernel a moment to forget.
bool threads_become(std::ptrdiff_t wanted) {
  for (int wait = 0; wait < 2000 && threads_alive() != wanted; ++wait) std::this_thread::sleep_for(1ms);
  return threads_alive() == wanted;
}

// new = (old + side, row by row), or twice the old without side; a hook may throw.
class Adder : public Executable {
 public:
  explicit Adder(
      bool has_side = false, std::function<void(std::int64_t)> hook = [](std::int64_t) {})
      : has_side_(has_side), hook_(std::move(hook)) {}
  void run(InputRows old, InputRows side, OutputRows out, std::int64_t rows, int) const override {
    CHECK((side.data != nullptr) == has_side_);
    hook_(rows);
    const auto* left = static_cast<const float*>(old.data);
    const auto* right = has_side_ ? static_cast<const float*>(side.data) : left;
    for (std::int64_t i = 0; i < rows; ++i) static_cast<float*>(out.data)[i] = left[i] + right[i];
  }
  int old_dim() const override { return 1; }
  int side_dim() const override { return has_side_ ? 1 : 0; }
  int new_dim() const override { return 1; }
  Precision precision() const override { return Precision::kFp32; }
  std::string description() const override { return "adder"; }

 private:
  bool has_side_;
  std::function<void(std::int64_t)> hook_;
};

// A source that counts up from 0, and consumers that check that nothing is lost, repeated or overtaken.
struct Stream {
  std::int64_t total;
  PipelineConfig config;
  std::vector<Block> blocks;
  PipelineStages stages;
  std::atomic<std::int64_t> rows_read{0}, rows_written{0}, rows_indexed{0};

  Stream(const Executable& executable, std::int64_t total_rows, PipelineConfig wanted, bool has_index)
      : total(total_rows), config(wanted), blocks(allocate_blocks(executable, config)) {
    stages.read = [this](int number) { return read(blocks.at(static_cast<std::size_t>(number))); };
    stages.write = [this](int block, std::int64_t rows) { consume(block, rows, rows_written); };
    if (has_index)
      stages.index = [this](int block, std::int64_t rows) { consume(block, rows, rows_indexed); };
    stages.poll = [] {};
  }

  std::int64_t read(Block& block) {
    const std::int64_t rows = std::min(config.block_rows, total - rows_read);
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto value = static_cast<float>(rows_read + i);
      reinterpret_cast<float*>(block.old.get())[i] = value;
      if (block.side) reinterpret_cast<float*>(block.side.get())[i] = value;
    }
    rows_read += rows;
    const std::int64_t slowest =
        stages.index ? std::min(rows_written.load(), rows_indexed.load()) : rows_written.load();
    CHECK(rows_read - slowest <= config.blocks * config.block_rows);
    return rows;
  }

  void consume(int block, std::int64_t rows, std::atomic<std::int64_t>& done) {
    const auto* out = reinterpret_cast<const float*>(blocks.at(static_cast<std::size_t>(block)).out.get());
    for (std::int64_t i = 0; i < rows; ++i) CHECK(out[i] == static_cast<float>(2 * (done + i)));
    done += rows;
  }
};

TEST(every_row_passes_every_stage_in_order) {
  Random random(51);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const bool has_side = repeat % 2 == 0, side_is_old = repeat % 4 == 0, has_index = repeat % 3 != 0;
    const Adder adder(has_side);
    const PipelineConfig config{
        .block_rows = uniform(random, 1, 40), .blocks = uniform(random, 1, 5), .side_is_old = side_is_old};
    Stream stream(adder, uniform(random, 0, 1000), config, has_index);
    CHECK((stream.blocks[0].side != nullptr) == (has_side && !side_is_old));
    const PipelineTimes times = run_pipeline(adder, stream.config, stream.blocks, stream.stages);
    CHECK(times.rows == stream.total && stream.rows_written == stream.total);
    CHECK(stream.rows_indexed == (has_index ? stream.total : 0));
    CHECK(times.read >= 0 && times.transform >= 0 && times.write >= 0 && times.index >= 0);
    CHECK(times.wall >= std::max(times.read, times.transform));
  }
}

TEST(slow_stages_overlap) {
  const Adder adder(false, [](std::int64_t) { std::this_thread::sleep_for(10ms); });
  Stream stream(adder, 10, {.block_rows = 1}, true);
  auto slowly = [](auto stage) {
    return [stage](auto... arguments) {
      std::this_thread::sleep_for(10ms);
      return stage(arguments...);
    };
  };
  stream.stages = {slowly(stream.stages.read), slowly(stream.stages.write), slowly(stream.stages.index),
                   [] {}};
  const PipelineTimes times = run_pipeline(adder, stream.config, stream.blocks, stream.stages);
  CHECK(std::min({times.read, times.transform, times.write, times.index}) >= 0.1);
  CHECK(times.wall < 0.75 * (times.read + times.transform + times.write + times.index),
        std::to_string(times.wall));
}

// Any stage may fail at any moment, several may fail; nothing hangs, no thread stays, and what comes out was
// thrown.
TEST(errors_at_random_moments_stop_everything) {
  Random random(52);
  std::thread([] {}).join();  // sanitizers start one of their own with the first
  const auto threads_before = threads_alive();
  for (int repeat = 0; repeat < 2000; ++repeat) {
    const bool has_index = repeat % 2 == 0;
    std::array<std::atomic<int>, 4> countdown;  // read, transform, write, index; negative: never
    for (auto& count : countdown) count = uniform(random, 0, 1) == 0 ? -1 : uniform(random, 1, 12);
    std::mutex mutex;
    std::vector<std::string> thrown;
    auto fail_in_time = [&](std::size_t stage) {
      if (repeat % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(20 * stage));
      if (--countdown[stage] != 0) return;
      const std::lock_guard lock(mutex);
      thrown.push_back("stage " + std::to_string(stage));
      throw std::runtime_error(thrown.back());
    };
    const Adder adder(false, [&](std::int64_t) { fail_in_time(1); });
    Stream stream(adder, 200, {.block_rows = 20, .blocks = uniform(random, 1, 4)}, has_index);
    const PipelineStages plain = stream.stages;
    stream.stages.read = [&](int block) { return fail_in_time(0), plain.read(block); };
    stream.stages.write = [&](int block, std::int64_t rows) { fail_in_time(2), plain.write(block, rows); };
    if (has_index)
      stream.stages.index = [&](int block, std::int64_t rows) { fail_in_time(3), plain.index(block, rows); };
    std::string caught;
    try {
      run_pipeline(adder, stream.config, stream.blocks, stream.stages);
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    if (thrown.empty())
      CHECK(caught.empty() && stream.rows_written == stream.total, caught);
    else
      CHECK(std::count(thrown.begin(), thrown.end(), caught) == 1, caught);
  }
  CHECK(threads_become(threads_before));
}

TEST(the_first_error_is_the_one_rethrown) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::atomic<bool> has_failed{false};
    auto fail_later = [&] {
      while (!has_failed) std::this_thread::yield();
      std::this_thread::sleep_for(2ms);
      throw std::runtime_error("second");
    };
    const Adder adder;
    Stream stream(adder, 100, {.block_rows = 1}, true);
    const PipelineStages plain = stream.stages;
    stream.stages.read = [&](int block) {
      if (stream.rows_read == 3) fail_later();
      return plain.read(block);
    };
    stream.stages.write = [&](int, std::int64_t) {
      has_failed = true;
      throw std::logic_error("first");
    };
    stream.stages.index = [&](int, std::int64_t) { fail_later(); };
    std::string caught;
    try {
      run_pipeline(adder, stream.config, stream.blocks, stream.stages);
    } catch (const std::logic_error& error) {
      caught = error.what();
    }
    CHECK(caught == "first", caught);
  }
}

TEST(poll_can_stop_a_run) {
  for (int repeat = 0; repeat < 10; ++repeat) {
    const Adder adder;
    Stream stream(adder, 1 << 30, {.block_rows = 10}, repeat % 2 == 0);
    const PipelineStages plain = stream.stages;
    stream.stages.read = [&](int block) { return std::this_thread::sleep_for(1ms), plain.read(block); };
    const auto caller = std::this_thread::get_id();
    stream.stages.poll = [&] {
      CHECK(std::this_thread::get_id() == caller);
      throw std::domain_error("interrupted");
    };
    bool is_stopped = false;
    try {
      run_pipeline(adder, stream.config, stream.blocks, stream.stages);
    } catch (const std::domain_error&) {
      is_stopped = true;
    }
    CHECK(is_stopped && stream.rows_read < 10'000, std::to_string(stream.rows_read));
  }
}

TEST(a_bad_row_counts_from_the_first_row_read) {
  std::int64_t calls = 0;
  const Adder adder(false, [&](std::int64_t) {
    if (++calls == 4) throw NonFiniteRow("side", 5);
  });
  Stream stream(adder, 1000, {.block_rows = 70}, false);
  try {
    run_pipeline(adder, stream.config, stream.blocks, stream.stages);
    CHECK(false, "no error");
  } catch (const NonFiniteRow& error) {
    CHECK(error.row() == 3 * 70 + 5 && error.array() == "side", error.what());
  }
}

TEST(the_real_executable_runs_in_the_pipeline) {
  Random random(53);
  ProgramBuilder builder(random);
  const ValueId old = builder.value(1), side = builder.value(1);
  const auto executable =
      make_cpu_engine()->compile(builder.finish(old, side, builder.add(old, side)), Precision::kFp32);
  Stream stream(*executable, 20'000, {.block_rows = 700, .threads = 2}, true);
  CHECK(run_pipeline(*executable, stream.config, stream.blocks, stream.stages).rows == 20'000);
  CHECK(stream.rows_written == 20'000 && stream.rows_indexed == 20'000);
}

}  // namespace
}  // namespace fct::testing
