// Every call to the device fails once, at every place there is: a typed error, nothing leaked, nothing hangs,
// and what is left works.
#include <algorithm>
#include <thread>

#include "cuda_cases.h"
#include "fct/error.h"

namespace fct::testing {
namespace {

constexpr int kRows = 300;
constexpr int kNewDim = SmallCase::kNewDim;

using Failure = FakeDevice::Failure;

struct Case : SmallCase {
  Case() : SmallCase(81, kRows) { run(*compile(std::make_shared<FakeDevice>()), expected); }

  std::unique_ptr<Executable> compile(const std::shared_ptr<FakeDevice>& device,
                                      std::int64_t rows = 128) const {
    return with_blocks_of(rows, device, program, Precision::kFp16);
  }
  void run(const Executable& executable, Rows& out) const {
    executable.run(old.input(), side.input(), out.output(), kRows, 1);
  }
  bool is_right(const Rows& out) const { return std::equal(out.row(0), out.row(kRows), expected.row(0)); }
};

// Calls `work` with a failure at its first call to the device, its second, and so on until none is left.
template <typename Work>
int for_each_failure(FakeDevice& device, Failure failure, const Work& work) {
  int call = 1;
  for (;; ++call) {
    device.fail_at(call, failure);
    bool thrown = false;
    try {
      work();
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kResource, error.what());
      thrown = true;
    }
    // Waiting on the way out for work that has ended, or is given up, may fail unheard.
    const std::string what = "call " + std::to_string(call) + ": " + device.failed_call();
    const bool was_waiting = device.failed_call().starts_with("synchronize");
    CHECK(thrown ? device.has_failed() : !device.has_failed() || was_waiting, what);
    CHECK(device.violations().empty(), "call " + std::to_string(call) + ": " + device.violations());
    if (device.has_failed()) continue;
    device.fail_at(-1, failure);
    return call;
  }
}

TEST(cuda_a_failure_while_compiling_leaves_nothing) {
  const Case one;
  for (Failure failure : {Failure::kOnce, Failure::kLost}) {
    const auto device = std::make_shared<FakeDevice>();
    std::unique_ptr<Executable> compiled;
    const int calls = for_each_failure(*device, failure, [&] { compiled = one.compile(device); });
    CHECK(calls > 200, std::to_string(calls));
    compiled.reset();
    check_all_freed(*device);
  }
}

// Out of memory at one place: the next smaller block is tried, and works.
TEST(cuda_out_of_memory_anywhere_halves_the_block) {
  const Case one;
  int tries = 0;
  for (bool failed = true; failed; ++tries) {
    const auto device = std::make_shared<FakeDevice>();
    device->fail_at(tries + 1, Failure::kOutOfMemory);
    {
      const auto executable = with_blocks_of(512, device, one.program, Precision::kFp16);
      failed = device->has_failed();
      const std::string wanted =
          failed ? "blocks 256 128 (halved: cuda:0 ran out" : "blocks 512 256 128 (to stay";
      CHECK(executable->description().find(wanted) != std::string::npos, executable->description());
      Rows out(DType::kFloat32, kRows, kNewDim);
      one.run(*executable, out);
      CHECK(one.is_right(out));
    }
    check_all_freed(*device);
  }
  CHECK(tries > 20, std::to_string(tries));
}

// In lanes of one block and of two.
TEST(cuda_a_failed_run_leaves_the_executable_usable) {
  const Case one;
  for (const auto& [failure, lane_rows] : {std::pair{Failure::kOnce, 128},
                                           {Failure::kLost, 128},
                                           {Failure::kOnce, 256},
                                           {Failure::kLost, 256}}) {
    const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = 5, .uneven_from = 129});
    {
      auto executable = one.compile(device, lane_rows);
      const int calls = for_each_failure(*device, failure, [&] {
        if (!executable) executable = one.compile(device, lane_rows);
        Rows out(DType::kFloat32, kRows, kNewDim);
        one.run(*executable, out);
        CHECK(one.is_right(out));
      });
      CHECK(calls > 40, std::to_string(calls));
      Rows out(DType::kFloat32, kRows, kNewDim);
      one.run(*executable, out);
      CHECK(one.is_right(out));
    }
    check_all_freed(*device);
  }
}

// A run that is started and given up, and a second one beside it.
TEST(cuda_a_failure_reaches_every_run_in_flight) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = 6});
  {
    const auto executable = one.compile(device);
    const auto memory = cuda::device_buffer(device, kRows * kNewDim * sizeof(float));
    const KeptRows kept{memory.as<float>(), true};
    for_each_failure(*device, Failure::kOnce, [&] {
      Rows first(DType::kFloat32, kRows, kNewDim), second(DType::kFloat32, kRows, kNewDim);
      const auto started =
          executable->start(one.old.input(), one.side.input(), first.output(), kRows, 1, kept);
      const auto beside = executable->start(one.old.input(), one.side.input(), second.output(), kRows, 1, {});
      started->wait();
      beside->wait();
      CHECK(one.is_right(first) && one.is_right(second));
    });
    Rows given_up(DType::kFloat32, kRows, kNewDim);
    executable->start(one.old.input(), one.side.input(), given_up.output(), kRows, 1, kept).reset();
  }
  check_all_freed(*device);
}

TEST(cuda_a_failure_on_the_callers_stream_is_thrown) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = 7});
  {
    const auto executable = one.compile(device);
    const auto& on_device = dynamic_cast<const DeviceExecutable&>(*executable);
    const cuda::Stream stream = device->create_stream();
    Rows out(DType::kFloat32, kRows, kNewDim);
    for_each_failure(*device, Failure::kOnce, [&] {
      on_device.run_on_device(one.old.input(), one.side.input(), out.output(), kRows, stream);
    });
    device->synchronize_stream(stream);
    CHECK(one.is_right(out));
    device->destroy_stream(stream);
  }
  check_all_freed(*device);
}

TEST(cuda_callers_survive_each_others_failures) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = 8});
  {
    const auto executable = one.compile(device);
    for (int call = 5; call < 200; call += 15) {
      device->fail_at(call, Failure::kOnce);
      std::vector<int> wrong(4, 0);
      {
        std::vector<std::jthread> callers;
        for (int& count : wrong)
          callers.emplace_back([&] {
            for (int repeat = 0; repeat < 2; ++repeat) {
              Rows out(DType::kFloat32, kRows, kNewDim);
              try {
                one.run(*executable, out);
                count += one.is_right(out) ? 0 : 1;
              } catch (const Error& error) {
                count += error.kind() == ErrorKind::kResource ? 0 : 1;
              }
            }
          });
      }
      CHECK(std::count(wrong.begin(), wrong.end(), 0) == 4);
      CHECK(device->violations().empty(), device->violations());
    }
  }
  check_all_freed(*device);
}

}  // namespace
}  // namespace fct::testing
