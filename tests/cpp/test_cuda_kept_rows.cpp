// Results that stay on the device for the index: the values that are published, complete when the index is
// given them, in memory that is bounded.
#include <algorithm>
#include <cmath>
#include <thread>

#include "cuda/multi_executable.h"
#include "cuda_cases.h"
#include "fct/error.h"
#include "fct/pipeline.h"

namespace fct::testing {
namespace {

constexpr int kRows = 1500, kBlockRows = 150;
constexpr int kOldDim = 7, kSideDim = 5, kNewDim = 6;
constexpr std::size_t kSpare = std::size_t{5} * kBlockRows * kNewDim * sizeof(float);  // for 5 blocks

// What an index takes of a row of `out`.
std::vector<float> for_index(const Rows& out, std::int64_t row, bool normalize) {
  std::vector<float> values;
  double sum = 0;
  for (int column = 0; column < out.width(); ++column) {
    values.push_back(static_cast<float>(out.at(row, column)));
    sum += out.at(row, column) * out.at(row, column);
  }
  if (normalize)
    for (float& value : values) value = static_cast<float>(value / std::max(std::sqrt(sum), 1e-12));
  return values;
}

void check_kept(const float* kept, const Rows& out, std::int64_t first, std::int64_t rows, bool normalize) {
  for (std::int64_t row = 0; row < rows; ++row, kept += out.width()) {
    const auto wanted = for_index(out, first + row, normalize);
    CHECK(std::equal(wanted.begin(), wanted.end(), kept), "row " + std::to_string(first + row));
  }
}

struct Case {
  Random random{91};
  Program program = paper_program(random, kOldDim, kSideDim, kNewDim, 12);
  Rows old = Rows::normal(random, DType::kFloat32, kRows, kOldDim);
  Rows side = Rows::normal(random, DType::kFloat16, kRows, kSideDim);

  std::unique_ptr<Executable> compile(std::shared_ptr<FakeDevice> device, std::size_t spare = kSpare) const {
    return with_blocks_of(128, std::move(device), program, Precision::kFp16, {}, spare);
  }
};

// All rows of a case through the pipeline; the index looks at the rows on the device.
struct Stream {
  const Case& one;
  const Executable& executable;
  PipelineConfig config;
  std::vector<Block> blocks;
  PipelineStages stages;
  Rows expected;
  std::int64_t read_rows = 0, written_rows = 0, indexed_rows = 0;

  Stream(const Case& the_case, const Executable& the_executable, Keep keep, DType dtype)
      : one(the_case), executable(the_executable), expected(dtype, kRows, kNewDim) {
    executable.run(one.old.input(), one.side.input(), expected.output(), kRows, 1);
    config.block_rows = kBlockRows;
    config.side_dtype = one.side.dtype();
    config.out_dtype = dtype;
    config.keep = keep;
    blocks = allocate_blocks(executable, config);
    stages.read = [this](int number) { return read(block(number)); };
    stages.write = [this](int number, std::int64_t rows) {
      const char* out = block(number).out.get();
      CHECK(std::equal(out, out + rows * expected.row_bytes(), expected.row(written_rows)));
      written_rows += rows;
    };
    stages.index = [this](int number, std::int64_t rows) {
      const auto* kept = static_cast<const float*>(block(number).kept.get());
      if (kept != nullptr)
        check_kept(kept, expected, indexed_rows, rows, config.keep == Keep::kNormalizedRows);
      indexed_rows += rows;
    };
    stages.poll = [] {};
  }

  Block& block(int number) { return blocks.at(static_cast<std::size_t>(number)); }

  std::int64_t read(Block& to) {
    const std::int64_t rows = std::min<std::int64_t>(config.block_rows, kRows - read_rows);
    std::copy(one.old.row(read_rows), one.old.row(read_rows + rows), to.old.get());
    std::copy(one.side.row(read_rows), one.side.row(read_rows + rows), to.side.get());
    read_rows += rows;
    return rows;
  }

  void run() { run_pipeline(executable, config, blocks, stages); }
};

TEST(cuda_kept_rows_are_the_published_values) {
  const Case one;
  for (unsigned seed = 1; seed <= 20; ++seed) {
    const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = seed});
    {
      const auto executable = one.compile(device);
      Stream stream(one, *executable, seed % 2 == 0 ? Keep::kRows : Keep::kNormalizedRows,
                    seed % 4 < 2 ? DType::kFloat32 : DType::kFloat16);
      CHECK(std::all_of(stream.blocks.begin(), stream.blocks.end(),
                        [](const Block& block) { return block.kept; }));
      if (seed % 3 == 0)  // so that all blocks wait for the index
        stream.stages.index = [index = stream.stages.index](int block, std::int64_t rows) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          index(block, rows);
        };
      stream.run();
      CHECK(stream.written_rows == kRows && stream.indexed_rows == kRows);
    }
    check_all_freed(*device);
  }
}

TEST(cuda_an_index_that_fails_stops_the_pipeline_and_frees_what_was_kept) {
  const Case one;
  for (int failing = 0; failing < 10; ++failing) {
    const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = static_cast<unsigned>(failing)});
    {
      const auto executable = one.compile(device);
      Stream stream(one, *executable, Keep::kRows, DType::kFloat16);
      stream.stages.index = [index = stream.stages.index, count = failing](int block,
                                                                           std::int64_t rows) mutable {
        if (count-- == 0) throw std::runtime_error("the index is full");
        index(block, rows);
      };
      std::string caught;
      try {
        stream.run();
      } catch (const std::runtime_error& error) {
        caught = error.what();
      }
      CHECK(caught == "the index is full" && stream.indexed_rows == failing * kBlockRows, caught);
    }
    check_all_freed(*device);
  }
}

TEST(cuda_rows_are_kept_where_the_limit_leaves_memory) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>();
  {
    const auto executable = one.compile(device);
    const auto all = executable->allocate_device(kSpare);
    CHECK(all && device->peak() <= memory_for(128, one.program, Precision::kFp16) + kSpare);
    CHECK(!executable->allocate_device(kSpare + 1));
    const auto no_more = one.compile(device, kSpare - 1);
    Stream stream(one, *no_more, Keep::kRows, DType::kFloat32);
    CHECK(std::none_of(stream.blocks.begin(), stream.blocks.end(),
                       [](const Block& block) { return block.kept; }));
    stream.run();
    CHECK(stream.indexed_rows == kRows);
  }
  check_all_freed(*device);
}

// Others take a device's memory too.
TEST(cuda_a_full_device_keeps_no_rows) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>();
  {
    const auto executable = one.compile(device);
    device->fail_at(1, FakeDevice::Failure::kOutOfMemory);
    CHECK(!executable->allocate_device(kSpare) && device->has_failed());
    device->fail_at(1, FakeDevice::Failure::kOnce);
    try {
      executable->allocate_device(kSpare);
      CHECK(false, "a failure was taken for a lack of memory");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kResource);
    }
    device->fail_at(-1, FakeDevice::Failure::kOnce);
    CHECK(executable->allocate_device(kSpare));
  }
  check_all_freed(*device);
}

TEST(cuda_kept_rows_may_outlive_the_executable) {
  const Case one;
  const auto device = std::make_shared<FakeDevice>();
  DeviceAllocation kept = one.compile(device)->allocate_device(kSpare);
  CHECK(kept && device->allocated() > 0);
  kept = nullptr;
  check_all_freed(*device);
}

TEST(rows_are_kept_on_one_device_only) {
  const Case one;
  CHECK(!make_cpu_engine()->compile(one.program, Precision::kFp32)->allocate_device(1));
  std::vector<std::unique_ptr<Executable>> devices;
  for (int device = 0; device < 2; ++device)
    devices.push_back(one.compile(std::make_shared<FakeDevice>(FakeOptions{}, device)));
  const cuda::MultiExecutable both(std::move(devices));
  Stream stream(one, both, Keep::kRows, DType::kFloat32);
  CHECK(!stream.blocks.front().kept);
  stream.run();
  CHECK(stream.indexed_rows == kRows);
}

}  // namespace
}  // namespace fct::testing
