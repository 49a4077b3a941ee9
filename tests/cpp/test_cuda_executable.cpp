// Rows through the scheduling of csrc/cuda, on a device that runs as late and as disorderly as it may.
#include <algorithm>
#include <cmath>
#include <thread>

#include "bounded.h"
#include "check.h"
#include "cuda/device_engine.h"
#include "cuda_cases.h"
#include "fct/error.h"
#include "fct/pipeline.h"

namespace fct::testing {
namespace {

constexpr Precision kPrecisions[] = {Precision::kFp32, Precision::kTf32, Precision::kFp16, Precision::kBf16,
                                     Precision::kFp8};

DType any_border_type(Random& random) {
  return uniform(random, 0, 1) == 0 ? DType::kFloat32 : DType::kFloat16;
}

// A few rows for every sample of the results that are compared, the first and the last row among them.
void check_rows(Random& random, const Program& program, Precision precision, const Ranges& ranges,
                const Rows& old, const Rows& side, const Rows& out, std::int64_t rows) {
  for (int sample = 0; sample < std::min<std::int64_t>(rows, 12); ++sample) {
    const std::int64_t row = sample == 0   ? 0
                             : sample == 1 ? rows - 1
                                           : uniform(random, 0, static_cast<int>(rows) - 1);
    check_row(evaluate(program, precision, old, side, row, ranges), out, row, program);
  }
}

TEST(cuda_random_programs_match_the_definition) {
  Random random(61);
  for (int i = 0; i < 60; ++i) {
    const Program program = random_program(random, 50);
    const Precision precision = kPrecisions[i % 5];
    const DType in = any_border_type(random);
    constexpr int kRows = 700;
    const Rows old = Rows::normal(random, in, kRows, program.width(program.old));
    const Rows side = Rows::normal(random, in, kRows, program.has_side() ? program.width(program.side) : 0);
    const Ranges ranges = measured_ranges(program, old, side, 200);
    FakeOptions options{.seed = static_cast<unsigned>(i)};
    if (i % 3 == 1) options.no_fused_output = {storage_of(precision)};
    options.bare_sums_only = i % 4 == 3;
    if (i % 3 == 2) options.no_fused_output = {DType::kFloat32, DType::kFloat16, DType::kFloat8};
    const bool all_short = precision == Precision::kFp32 || precision == Precision::kTf32;
    if (all_short) options.no_fused_output.clear();
    const auto device = std::make_shared<FakeDevice>(options);
    {
      const auto executable = with_blocks_of(128, device, program, precision, ranges);
      CHECK(executable->precision() == precision && executable->device() == "cuda:0");
      const int rows = i % 4 == 0 ? kRows : uniform(random, 0, kRows);
      Rows out(any_border_type(random), rows + 1, executable->new_dim());
      std::fill_n(out.row(rows), out.row_bytes(), 'x');
      executable->run(old.input(), side.input(), out.output(), rows, uniform(random, 1, 3));
      // Where sums are rounded to bfloat16 before they are activated, that is one more rounding.
      const bool by_bfloat = options.no_fused_output.contains(DType::kFloat32);
      check_rows(random, program, by_bfloat && precision == Precision::kFp16 ? Precision::kBf16 : precision,
                 ranges, old, side, out, rows);
      CHECK(std::count(out.row(rows), out.row(rows) + out.row_bytes(), 'x') ==
                static_cast<std::ptrdiff_t>(out.row_bytes()),
            "writes behind the last row, " + describe(program));
    }
    check_all_freed(*device);
  }
}

TEST(cuda_any_number_of_rows_gives_the_same_bytes) {
  Random random(62);
  const Program program = paper_program(random, 20, 12, 9, 40);
  const auto device = std::make_shared<FakeDevice>();
  const auto executable = with_blocks_of(512, device, program, Precision::kBf16);
  CHECK(executable->description().starts_with("Fake, blocks 512 256 128"), executable->description());
  constexpr int kRows = 3 * 512 + 5;
  const Rows old = Rows::normal(random, DType::kFloat32, kRows, 20);
  const Rows side = Rows::normal(random, DType::kFloat16, kRows, 12);
  Rows expected(DType::kFloat32, kRows, 9);
  executable->run(old.input(), side.input(), expected.output(), kRows, 2);
  for (int rows : {0, 1, 7, 127, 128, 129, 511, 512, 513, 1024, kRows - 1, kRows}) {
    const int first = uniform(random, 0, kRows - rows);
    Rows out(DType::kFloat32, rows, 9);
    executable->run(old.input(first), side.input(first), out.output(), rows, 1);
    CHECK(std::equal(out.row(0), out.row(rows), expected.row(first)), std::to_string(rows) + " rows");
  }
  check_row(evaluate(program, Precision::kBf16, old, side, 1500), expected, 1500, program);
}

// Both branches are written where the concat lies: nothing is copied together. In tf32 what a layer has
// written is rounded for the next one.
TEST(cuda_the_papers_transformation_needs_no_copies) {
  Random random(63);
  const Program program = paper_program(random, 20, 12, 9, 40);
  for (Precision precision : kPrecisions) {
    const auto device = std::make_shared<FakeDevice>();
    const auto executable = with_blocks_of(128, device, program, precision, all_ranges(program, 10));
    CHECK((device->converts() > 0) == (precision == Precision::kTf32), name_of(precision));
  }
}

// What is rounded to float8 in the end is written in 2 bytes before, not in 4, and activated there.
TEST(cuda_layers_that_cannot_write_float8_write_bfloat16) {
  Random random(77);
  const Program program = paper_program(random, 20, 12, 9, 40);
  for (const auto& [options, kernel] :
       {std::pair{FakeOptions{.no_fused_output = {DType::kFloat8}}, "fake bf16 relu + cast"},
        {FakeOptions{.bare_sums_only = true}, "fake fp32 + cast"},
        {FakeOptions{}, "fake fp8 relu;"}}) {
    const auto device = std::make_shared<FakeDevice>(options);
    const auto executable = with_blocks_of(128, device, program, Precision::kFp8, all_ranges(program, 10));
    CHECK(executable->description().find(kernel) != std::string::npos, executable->description());
  }
}

TEST(cuda_blocks_that_round_differently_are_dropped) {
  Random random(64);
  const Program program = paper_program(random, 24, 24, 16, 64);
  for (const auto& [options, kept] :
       {std::pair{FakeOptions{.backwards_below = 200}, "blocks 2048 1024 512 256"},
        {FakeOptions{.backwards_below = 2000}, "blocks 2048"},
        {FakeOptions{.uneven_from = 1000}, "blocks 512 256 128"}}) {
    const auto device = std::make_shared<FakeDevice>(options);
    const auto executable = with_blocks_of(2048, device, program, Precision::kFp32);
    const std::string text = executable->description();
    CHECK(text.find(std::string("Fake, ") + kept + " (to stay within") == 0, text);
  }
  // The next best kernels are tried, as long as there are some.
  const auto third = std::make_shared<FakeDevice>(FakeOptions{.uneven_from = 1, .uneven_choices = 2});
  const auto executable = with_blocks_of(256, third, program, Precision::kFp32);
  CHECK(executable->description().starts_with("Fake, blocks 256 128"), executable->description());
  const auto uneven = std::make_shared<FakeDevice>(FakeOptions{.uneven_from = 1});
  try {
    with_blocks_of(128, uneven, program, Precision::kFp32);
    CHECK(false, "compiled where a row's place changes its bytes");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kUnsupported);
  }
}

TEST(cuda_many_callers_share_one_executable) {
  Random random(65);
  const Program program = paper_program(random, 12, 9, 11, 40);
  const auto device = std::make_shared<FakeDevice>();
  constexpr int kRows = 900;
  const Rows old = Rows::normal(random, DType::kFloat32, kRows, 12);
  const Rows side = Rows::normal(random, DType::kFloat16, kRows, 9);
  {
    const auto executable = with_blocks_of(128, device, program, Precision::kFp16);
    Rows expected(DType::kFloat32, kRows, 11);
    executable->run(old.input(), side.input(), expected.output(), kRows, 1);
    std::vector<int> wrong(5, 0);
    {
      std::vector<std::jthread> callers;
      for (int& count : wrong)
        callers.emplace_back([&, threads = 1 + static_cast<int>(callers.size()) % 3] {
          for (int repeat = 0; repeat < 3; ++repeat) {
            Rows out(DType::kFloat32, kRows, 11);
            executable->run(old.input(), side.input(), out.output(), kRows, threads);
            count += std::equal(out.row(0), out.row(kRows), expected.row(0)) ? 0 : 1;
          }
        });
    }
    CHECK(std::count(wrong.begin(), wrong.end(), 0) == 5);
  }
  check_all_freed(*device);
}

TEST(cuda_rows_in_pinned_memory_are_not_staged) {
  Random random(66);
  const Program program = mlp_program(random, 6, 5, 4, 12);
  const auto device = std::make_shared<FakeDevice>();
  constexpr int kRows = 600;
  HostMemory old, side, out;
  {
    const auto executable = with_blocks_of(128, device, program, Precision::kFp32);
    const int handles = device->live_handles();
    const Rows plain_old = Rows::normal(random, DType::kFloat32, kRows, 6);
    const Rows plain_side = Rows::normal(random, DType::kFloat32, kRows, 5);
    old = executable->allocate_host(kRows * 6 * sizeof(float));
    side = executable->allocate_host(kRows * 5 * sizeof(float));
    out = executable->allocate_host(kRows * 4 * sizeof(float));
    std::copy(plain_old.row(0), plain_old.row(kRows), old.get());
    std::copy(plain_side.row(0), plain_side.row(kRows), side.get());
    executable->run({old.get()}, {side.get()}, {out.get()}, kRows, 1);
    CHECK(device->live_handles() == handles + 3, "staging buffers were made");
    Rows expected(DType::kFloat32, kRows, 4);
    executable->run(plain_old.input(), plain_side.input(), expected.output(), kRows, 1);
    CHECK(std::equal(out.get(), out.get() + kRows * expected.row_bytes(), expected.row(0)));
  }
  old = side = out = nullptr;  // they may outlive the executable
  check_all_freed(*device);
}

TEST(cuda_side_that_is_old_is_copied_once) {
  Random random(75);
  const Program program = paper_program(random, 8, 8, 4, 12);
  constexpr int kRows = 300;
  const Rows old = Rows::normal(random, DType::kFloat16, kRows, 8);
  const Rows side = old;  // the same rows elsewhere
  const auto device = std::make_shared<FakeDevice>();
  const auto executable = with_blocks_of(128, device, program, Precision::kBf16);
  Rows expected(DType::kFloat32, kRows, 4), out(DType::kFloat32, kRows, 4);
  auto copies = [&](InputRows given, Rows& result) {
    const int before = device->copies_in();
    executable->run(old.input(), given, result.output(), kRows, 1);
    return device->copies_in() - before;
  };
  const int twice = copies(side.input(), expected);
  CHECK(copies(old.input(), out) * 2 == twice);
  CHECK(std::equal(out.row(0), out.row(kRows), expected.row(0)));
}

TEST(cuda_device_memory_is_kept_within_its_limit) {
  Random random(67);
  const Program program = paper_program(random, 16, 16, 16, 64);
  for (std::int64_t rows : {128, 512, 4096}) {
    const std::size_t limit = memory_for(rows, program, Precision::kFp32);
    const auto device = std::make_shared<FakeDevice>();
    const auto executable = with_blocks_of(rows, device, program, Precision::kFp32);
    CHECK(device->peak() <= limit, std::to_string(device->peak()) + " of " + std::to_string(limit));
    CHECK(executable->description().find("to stay within") != std::string::npos, executable->description());
  }
  const auto device = std::make_shared<FakeDevice>();
  try {
    cuda::CudaExecutable(device, program, Precision::kFp32, {},
                         memory_for(128, program, Precision::kFp32) - 1);
    CHECK(false, "compiled into less memory than it needs");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kDeviceMemory);
  }
  check_all_freed(*device);
}

TEST(cuda_blocks_are_halved_when_memory_runs_out) {
  Random random(68);
  const Program program = paper_program(random, 16, 16, 16, 64);
  FakeOptions options;
  options.memory = memory_for(700, program, Precision::kFp32);  // less than the device says is free
  options.reported_free = memory_for(9000, program, Precision::kFp32);
  const auto device = std::make_shared<FakeDevice>(options);
  {
    const cuda::CudaExecutable executable(device, program, Precision::kFp32, {}, 0);
    CHECK(executable.description().find("blocks 512 256 128 (halved: cuda:0 ran out of memory)") !=
              std::string::npos,
          executable.description());
  }
  check_all_freed(*device);
}

// Which block is the largest is a matter of speed alone; what is larger gives its memory back, but for lanes.
TEST(cuda_the_fastest_block_is_the_largest) {
  Random random(78);
  const Program program = mlp_program(random, 3, 2, 2, 4);
  constexpr int kRows = 20000;
  const Rows old = Rows::normal(random, DType::kFloat32, kRows, 3);
  const Rows side = Rows::normal(random, DType::kFloat32, kRows, 2);
  Rows expected(DType::kFloat32, kRows, 2);
  struct {
    std::map<std::int64_t, double> seconds_per_row;
    std::int64_t largest;
    std::string speeds;
  } cases[] = {{{{16384, 1e-5}, {8192, 1e-5}, {4096, 2e-5}}, 16384, "16384 0.05, 8192 0.05, 4096 0.025;"},
               {{{16384, 2e-5}, {8192, 1e-5}, {4096, 1.02e-5}}, 8192, "16384 0.025, 8192 0.05, 4096 0.049;"},
               {{{16384, 1.02e-8}, {8192, 1e-8}, {4096, 2e-8}}, 16384, "16384 49, 8192 50, 4096 25;"},
               {{{16384, 2e-5}, {8192, 2e-5}, {4096, 1e-5}}, 4096, "16384 0.025, 8192 0.025, 4096 0.05;"}};
  for (const auto& [seconds_per_row, largest, speeds] : cases) {
    const auto device = std::make_shared<FakeDevice>(FakeOptions{.seconds_per_row = seconds_per_row});
    {
      const cuda::CudaExecutable executable(device, program, Precision::kBf16, {},
                                            memory_for(16384, program, Precision::kBf16),
                                            [&] { return device->seconds(); });
      const std::string text = executable.description();
      CHECK(text.find("blocks " + std::to_string(largest) + " ") != std::string::npos, text);
      CHECK(text.find("M rows/s by block: " + speeds) != std::string::npos, text);
      CHECK(executable.device_bytes() == memory_for(largest, program, Precision::kBf16, 16384));
      CHECK(device->allocated() <= executable.device_bytes(), std::to_string(device->allocated()));
      CHECK(2 * device->allocated() > executable.device_bytes() - cuda::kLinearWorkspace);
      CHECK(device->peak() <= memory_for(16384, program, Precision::kBf16));
      Rows out(DType::kFloat32, kRows, 2);
      executable.run(old.input(), side.input(), out.output(), kRows, 1);
      if (largest == 16384) std::copy(out.row(0), out.row(kRows), expected.row(0));
      CHECK(std::equal(out.row(0), out.row(kRows), expected.row(0)), text);
    }
    check_all_freed(*device);
  }
}

TEST(cuda_two_devices_share_the_rows_in_order) {
  Random random(69);
  const Program program = paper_program(random, 12, 9, 11, 30);
  std::vector<cuda::SharedDevice> devices{std::make_shared<FakeDevice>(FakeOptions{.seed = 1}, 0),
                                          std::make_shared<FakeDevice>(FakeOptions{.seed = 2}, 1)};
  const auto one = with_blocks_of(128, std::make_shared<FakeDevice>(), program, Precision::kFp32);
  const auto engine = cuda::make_device_engine(devices, memory_for(128, program, Precision::kFp32));
  const auto both = engine->compile(program, Precision::kFp32);
  CHECK(both->device() == "cuda:0,cuda:1");
  for (int rows : {0, 1, 2, 300, 1000}) {
    Rows old = Rows::normal(random, DType::kFloat16, rows, 12);
    const Rows side = Rows::normal(random, DType::kFloat32, rows, 9);
    Rows expected(DType::kFloat32, rows, 11), out(DType::kFloat32, rows, 11);
    one->run(old.input(), side.input(), expected.output(), rows, 1);
    both->run(old.input(), side.input(), out.output(), rows, 4);
    CHECK(std::equal(out.row(0), out.row(rows), expected.row(0)), std::to_string(rows) + " rows");
    if (rows < 300) continue;
    for (int bad : {rows - 1, rows / 2, 3}) {  // the first one wins, whichever device has it
      old.set(bad, 1, NAN);
      try {
        both->run(old.input(), side.input(), out.output(), rows, 4);
        CHECK(false, "NaN was not found");
      } catch (const NonFiniteRow& error) {
        CHECK(error.array() == "old" && error.row() == bad);
      }
    }
  }
}

TEST(cuda_devices_that_do_not_fit_are_refused) {
  auto refuses = [](const std::vector<FakeOptions>& wanted, Precision precision) {
    std::vector<cuda::SharedDevice> devices;
    for (const FakeOptions& device : wanted)
      devices.push_back(std::make_shared<FakeDevice>(device, static_cast<int>(devices.size())));
    Random random(70);
    const Program program = mlp_program(random, 2, 2, 2, 2);
    try {
      cuda::make_device_engine(devices, memory_for(128, program, precision))
          ->compile(program, precision, all_ranges(program, 1));
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kUnsupported, error.what());
      return true;
    }
    return false;
  };
  CHECK(refuses({}, Precision::kFp32));
  CHECK(refuses({{.major = 7, .minor = 5}}, Precision::kFp32));
  CHECK(refuses({{.major = 8, .minor = 0}}, Precision::kFp8));
  CHECK(refuses({{.name = "A"}, {.name = "B"}}, Precision::kFp32));
  CHECK(!refuses({{.major = 8, .minor = 9}}, Precision::kFp8));
}

TEST(cuda_fp8_without_a_range_is_refused) {
  Random random(71);
  const Program program = mlp_program(random, 3, 2, 2, 4);
  Ranges ranges = all_ranges(program, 1);
  ranges.erase(linear_inputs(program).back());
  try {
    with_blocks_of(128, std::make_shared<FakeDevice>(), program, Precision::kFp8, ranges);
    CHECK(false, "compiled fp8 without a scale");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kArray);
  }
}

TEST(cuda_a_stream_that_is_captured_is_refused) {
  Random random(76);
  const Program program = mlp_program(random, 5, 3, 4, 10);
  const auto device = std::make_shared<FakeDevice>();
  const Rows old = Rows::normal(random, DType::kFloat32, 9, 5);
  const Rows side = Rows::normal(random, DType::kFloat32, 9, 3);
  Rows out(DType::kFloat32, 9, 4);
  {
    const auto executable = with_blocks_of(128, device, program, Precision::kFp32);
    const auto& on_device = dynamic_cast<const DeviceExecutable&>(*executable);
    const cuda::Stream stream = device->create_stream();
    auto call = [&] { on_device.run_on_device(old.input(), side.input(), out.output(), 9, stream); };
    try {
      device->capture(stream, call);
      CHECK(false, "was captured");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kUnsupported, error.what());
    }
    call();
    device->synchronize_stream(stream);
    device->destroy_stream(stream);
  }
  check_all_freed(*device);
}

TEST(cuda_feeds_the_pipeline_several_blocks_at_once) {
  Random random(74);
  const Program program = mlp_program(random, 5, 3, 4, 10);
  const auto device = std::make_shared<FakeDevice>();
  constexpr int kRows = 2000;
  const Rows old = Rows::normal(random, DType::kFloat32, kRows, 5);
  const Rows side = Rows::normal(random, DType::kFloat32, kRows, 3);
  Rows expected(DType::kFloat32, kRows, 4), written(DType::kFloat32, kRows, 4);
  {
    const auto executable = with_blocks_of(128, device, program, Precision::kFp32);
    executable->run(old.input(), side.input(), expected.output(), kRows, 1);
    PipelineConfig config;
    config.block_rows = 150;
    auto blocks = allocate_blocks(*executable, config);
    CHECK(blocks.size() == 5);
    std::int64_t read = 0, done = 0;
    PipelineStages stages;
    stages.read = [&](int number) {
      Block& block = blocks[static_cast<std::size_t>(number)];
      const std::int64_t rows = std::min<std::int64_t>(config.block_rows, kRows - read);
      std::copy(old.row(read), old.row(read + rows), block.old.get());
      std::copy(side.row(read), side.row(read + rows), block.side.get());
      read += rows;
      return rows;
    };
    stages.write = [&](int number, std::int64_t rows) {
      const char* out = blocks[static_cast<std::size_t>(number)].out.get();
      std::copy(out, out + static_cast<std::size_t>(rows) * written.row_bytes(), written.row(done));
      done += rows;
    };
    stages.poll = [] {};
    CHECK(run_pipeline(*executable, config, blocks, stages).rows == kRows && done == kRows);
    CHECK(std::equal(written.row(0), written.row(kRows), expected.row(0)));
  }
  check_all_freed(*device);
}

}  // namespace
}  // namespace fct::testing
