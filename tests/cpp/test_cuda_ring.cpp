// Lanes of the ring: several blocks each, others' work while one is waited for, staging of the size that is
// needed.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <future>
#include <thread>

#include "cuda_cases.h"
#include "fct/error.h"

namespace fct::testing {
namespace {

constexpr int kLaneRows = 2048, kBlockRows = 512, kRows = 2 * kLaneRows + 700;
constexpr int kNewDim = SmallCase::kNewDim;

struct Case : SmallCase {
  Case() : SmallCase(101, kRows) {
    const auto plain = with_blocks_of(128, std::make_shared<FakeDevice>(), program, Precision::kFp16);
    plain->run(old.input(), side.input(), expected.output(), kRows, 1);
  }
  // Memory for lanes and blocks of so many rows, of which only blocks of kBlockRows can be used.
  std::unique_ptr<Executable> compile(const std::shared_ptr<FakeDevice>& device) const {
    return with_blocks_of(kLaneRows, device, program, Precision::kFp16);
  }
  bool is_right(const Rows& out, std::int64_t rows, std::int64_t first = 0) const {
    return std::equal(out.row(0), out.row(rows), expected.row(first));
  }
};

FakeOptions small_blocks(unsigned seed) { return {.seed = seed, .uneven_from = kBlockRows + 1}; }

TEST(cuda_a_lane_holds_several_blocks) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>(small_blocks(1));
  {
    const auto executable = one.compile(device);
    CHECK(executable->description().starts_with("Fake, blocks 512 256 128"), executable->description());
    const std::size_t limit = memory_for(kLaneRows, one.program, Precision::kFp16);
    CHECK(device->peak() <= limit && device->allocated() <= executable->device_bytes());
    CHECK(executable->device_bytes() == memory_for(kBlockRows, one.program, Precision::kFp16, kLaneRows));
    for (int rows : {0, 1, 511, 513, kLaneRows - 1, kLaneRows, kLaneRows + 1, kRows}) {
      const int first = kRows - rows, copies = device->copies_in();
      Rows out(DType::kFloat32, rows, kNewDim);
      executable->run(one.old.input(first), one.side.input(first), out.output(), rows, 2);
      CHECK(one.is_right(out, rows, first), std::to_string(rows) + " rows");
      CHECK(device->copies_in() - copies == 2 * ((rows + kLaneRows - 1) / kLaneRows));
    }
  }
  check_all_freed(*device);
}

TEST(cuda_rows_of_a_lane_are_kept) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>(small_blocks(2));
  {
    const auto executable = one.compile(device);
    const auto memory = cuda::device_buffer(device, kRows * kNewDim * sizeof(float));
    Rows out(DType::kFloat32, kRows, kNewDim);
    executable->start(one.old.input(), one.side.input(), out.output(), kRows, 1, {memory.as<float>(), false})
        ->wait();
    CHECK(one.is_right(out, kRows));
    CHECK(std::equal(out.row(0), out.row(kRows), memory.as<char>()));
  }
  check_all_freed(*device);
}

// Blocks of a lane count their rows from 0 each.
TEST(cuda_the_first_bad_row_of_a_lane_wins) {
  Case one;
  const auto executable = one.compile(std::make_shared<FakeDevice>(small_blocks(3)));
  Rows out(DType::kFloat32, kRows, kNewDim);
  for (int repeat = 0; repeat < 20; ++repeat) {
    int bad[] = {uniform(one.random, 0, kRows - 1), uniform(one.random, 0, kRows - 1)};
    Rows old = one.old;
    for (int row : bad) old.set(row, 1, NAN);
    try {
      executable->run(old.input(), one.side.input(), out.output(), kRows, 1);
      CHECK(false, "NaN was not found");
    } catch (const NonFiniteRow& error) {
      CHECK(error.array() == "old" && error.row() == *std::min_element(bad, bad + 2), error.what());
    }
  }
}

// As many as there can be, and a few where sizes between are missing.
TEST(cuda_every_block_of_a_lane_notes_its_bad_rows) {
  const Case one;
  const std::vector<std::int64_t> sizes{2048, 1024, 512, 256, 128};
  const auto layout = cuda::make_layout(one.program, Precision::kFp16, {});
  const auto device = std::make_shared<FakeDevice>();
  {
    auto program = std::make_shared<cuda::DeviceProgram>(device, one.program, Precision::kFp16, layout, sizes,
                                                         kLaneRows, 0);
    cuda::Ring ring(device, program, kLaneRows, SmallCase::kOldDim, SmallCase::kSideDim, kNewDim);
    Rows out(DType::kFloat32, kRows, kNewDim);
    for (const auto& usable : {std::vector<std::size_t>{4}, std::vector<std::size_t>{0, 4}})
      for (int bad : {-1, 0, 127, 128, kLaneRows - 1, kLaneRows, 2 * kLaneRows + 699}) {
        Rows side = one.side;
        if (bad >= 0) side.set(bad, 2, INFINITY);
        cuda::Job job;
        job.old = one.old.input();
        job.side = side.input();
        job.out = out.output();
        job.rows = kRows;
        std::int64_t found = -1;
        try {
          ring.start(job, usable);
          ring.finish(job);
          CHECK(one.is_right(out, kRows));
        } catch (const NonFiniteRow& error) {
          CHECK(error.array() == "side");
          found = error.row();
        }
        CHECK(found == bad, std::to_string(found) + " for " + std::to_string(bad));
      }
  }
  check_all_freed(*device);
}

// Tells when somebody is about to wait for an event, and what pinned memory is asked for.
class WatchedDevice : public FakeDevice {
 public:
  using FakeDevice::FakeDevice;
  std::function<void()> before_waiting = [] {};
  std::vector<std::size_t> pinned_sizes;

  void synchronize_event(cuda::Event event) override {
    before_waiting();
    FakeDevice::synchronize_event(event);
  }
  void* allocate_pinned(std::size_t bytes) override {
    pinned_sizes.push_back(bytes);
    return FakeDevice::allocate_pinned(bytes);
  }
};

// While the first job is waited for, a second one starts and ends: in lanes that are free, or in all of them,
// the first job's included. Then the wait may fail.
TEST(cuda_others_go_on_while_a_job_is_waited_for) {
  const Case one;
  for (const int rows : {100, kRows})
    for (const bool fails : {false, true}) {
      const auto device = std::make_shared<WatchedDevice>();
      const auto executable = with_blocks_of(128, device, one.program, Precision::kFp16);
      Rows first(DType::kFloat32, 200, kNewDim), second(DType::kFloat32, rows, kNewDim);
      const auto started = executable->start(one.old.input(), one.side.input(), first.output(), 200, 1, {});
      std::promise<void> is_waiting, has_ended;
      std::atomic<bool> is_first = true, went_on = false;
      device->before_waiting = [&] {
        if (!is_first.exchange(false)) return;
        is_waiting.set_value();
        went_on = has_ended.get_future().wait_for(std::chrono::seconds(5)) == std::future_status::ready;
        if (fails) throw Error(ErrorKind::kResource, "the wait failed");
      };
      auto waiter = std::async(std::launch::async, [&] { started->wait(); });
      is_waiting.get_future().wait();
      executable->run(one.old.input(), one.side.input(), second.output(), rows, 1);
      has_ended.set_value();
      bool failed = false;
      try {
        waiter.get();
      } catch (const Error& error) {
        failed = error.kind() == ErrorKind::kResource;
      }
      CHECK(went_on && one.is_right(second, rows));
      CHECK(failed == (fails && rows == 100), "a job that somebody else saw to its end has not failed");
      CHECK(failed || one.is_right(first, 200));
      executable->run(one.old.input(), one.side.input(), first.output(), 200, 1);
      CHECK(one.is_right(first, 200) && device->violations().empty(), device->violations());
    }
}

TEST(cuda_callers_of_many_lanes_get_their_own_rows) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>(small_blocks(4));
  {
    const auto executable = one.compile(device);
    std::vector<int> wrong(4, 0);
    {
      std::vector<std::jthread> callers;
      for (int& count : wrong)
        callers.emplace_back([&, caller = static_cast<int>(callers.size())] {
          const int first = 100 * caller, rows = kRows - 600 * caller;
          Rows old = one.old, out(DType::kFloat32, rows, kNewDim);
          for (int repeat = 0; repeat < 4; ++repeat) {
            const int bad = (repeat + caller) % 3 == 0 ? rows - 300 * caller - 1 : -1;
            old.set(first + std::max(bad, 0), 0, bad < 0 ? one.old.at(first, 0) : NAN);
            std::int64_t found = -1;
            try {
              executable->run(old.input(first), one.side.input(first), out.output(), rows, 2);
              count += one.is_right(out, rows, first) ? 0 : 1;
            } catch (const NonFiniteRow& error) {
              found = error.row();
            }
            count += found == bad ? 0 : 1;
            if (bad >= 0) old.set(first + bad, 0, one.old.at(first + bad, 0));
          }
        });
    }
    CHECK(std::count(wrong.begin(), wrong.end(), 0) == 4);
  }
  check_all_freed(*device);
}

TEST(cuda_staging_grows_with_the_rows_that_are_asked_for) {
  constexpr int kWide = 256, kMost = 4096;
  constexpr std::size_t kMebibyte = std::size_t{1} << 20;
  Random random(102);
  Program program;
  program.widths = {kWide, 1};
  program.old = 0;
  program.output = 1;
  program.steps = {Linear{0, 1, std::vector<float>(kWide, 1.f), {0}, Activation::kNone}};
  const Rows old = Rows::normal(random, DType::kFloat32, kMost, kWide);
  const auto device = std::make_shared<WatchedDevice>(FakeOptions{.uneven_from = 129});
  {
    const auto executable = with_blocks_of(kMost, device, program, Precision::kFp32);
    Rows expected(DType::kFloat32, kMost, 1), out(DType::kFloat32, kMost, 1);
    auto pinned_for = [&](int rows, Rows& to) {
      device->pinned_sizes.clear();
      for (int lane = 0; lane < 4; ++lane) executable->run(old.input(), {}, to.output(), rows, 1);
      return device->pinned_sizes;
    };
    const std::vector<std::size_t> none, least(4, kMebibyte), doubled(4, 2 * kMebibyte),
        most(4, kMost * kWide * sizeof(float));
    auto input_sizes = pinned_for(1, out);
    std::erase(input_sizes, kMost * sizeof(float));  // a lane of results is less than the least
    CHECK(input_sizes == least);
    CHECK(pinned_for(1024, out) == none);
    CHECK(pinned_for(1025, out) == doubled);
    CHECK(pinned_for(kMost, expected) == most);
    CHECK(pinned_for(700, out) == none);
    CHECK(std::equal(out.row(0), out.row(700), expected.row(0)));
  }
  check_all_freed(*device);
}

}  // namespace
}  // namespace fct::testing
