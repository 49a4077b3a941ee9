// Lists and codes by a device: those of the CPU, whatever the blocks, chunks and devices; bounded memory;
// every call to the device fails once.
#include <cmath>
#include <limits>
#include <thread>

#include "check.h"
#include "cuda/device_assigner.h"
#include "cuda_cases.h"
#include "fake_assign.h"
#include "random_values.h"

namespace fct::testing {
namespace {

constexpr int kEntries = Codebooks::kEntries;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// `lists` or `parts` may be 0: then there are none.
struct AssignCase {
  int rows, lists, parts, width;
  Metric metric = Metric::kL2;
  bool by_residual = true;
  float shift = 0;
  int flat_dim = 0;  // where there are no parts

  AssignCase(int rows_, int lists_, int parts_, int width_, Metric metric_ = Metric::kL2,
             bool by_residual_ = true, float shift_ = 0)
      : rows(rows_),
        lists(lists_),
        parts(parts_),
        width(width_),
        metric(metric_),
        by_residual(by_residual_),
        shift(shift_),
        flat_dim(parts_ == 0 ? width_ : 0) {
    if (lists > 0) centroids = {lists, dim(), metric, random_values(std::int64_t{lists} * dim(), 2, shift)};
    if (parts > 0) codebooks = {parts, width, by_residual, random_values(std::int64_t{kEntries} * dim(), 3)};
    data = random_values(std::int64_t{rows} * dim(), 1, shift);
  }
  int dim() const { return flat_dim > 0 ? flat_dim : parts * width; }
  cuda::Assignment assignment() const { return {centroids, codebooks}; }
  std::unique_ptr<cuda::OneDeviceAssigner> on(const cuda::SharedDevice& device,
                                              std::int64_t block = 128) const {
    const std::size_t memory = cuda::OneDeviceAssigner::bytes_for(assignment(), block);
    return std::make_unique<cuda::OneDeviceAssigner>(device, centroids, codebooks, memory);
  }

  std::optional<Centroids> centroids;
  std::optional<Codebooks> codebooks;
  std::vector<float> data;
};

const std::vector<AssignCase>& cases() {
  static const std::vector<AssignCase> all{
      {1, 1, 1, 1},
      {1, 40, 0, 5},
      {128, 17, 3, 2},
      {129, 33, 5, 4},
      {700, 20, 2, 3, Metric::kInnerProduct},
      {260, 0, 3, 5, Metric::kL2, false},
      {130, 30, 3, 5, Metric::kL2, false},
      {140, 90, 4, 17, Metric::kInnerProduct, true, 30},
      {140, 90, 4, 4, Metric::kL2, true, 1000},
  };
  return all;
}

// Of more than one chunk of lists.
AssignCase many_lists() { return {2, 16500, 0, 2}; }

struct Found {
  std::vector<std::int64_t> lists;
  std::vector<std::uint8_t> codes;
  bool operator==(const Found&) const = default;
};

Found empty_result(const Assigner& assigner, std::size_t rows) {
  return {std::vector<std::int64_t>(assigner.has_centroids() ? rows : 0, -7),
          std::vector<std::uint8_t>(rows * at(assigner.parts()), 77)};
}

Found run(const Assigner& assigner, const std::vector<float>& rows, int threads = 1) {
  const std::size_t count = rows.size() / at(assigner.dim());
  Found found = empty_result(assigner, count);
  assigner.assign(rows.data(), static_cast<std::int64_t>(count), threads, found.lists.data(),
                  found.codes.data());
  return found;
}

// By the distances alone, of all lists and all entries.
Found expected(const AssignCase& test) {
  Found found;
  const std::int64_t dim = test.dim();
  for (std::int64_t row = 0; row < test.rows; ++row) {
    std::vector<float> values(test.data.begin() + row * dim, test.data.begin() + (row + 1) * dim);
    float least = std::numeric_limits<float>::infinity();
    std::int64_t list = 0;
    for (std::int64_t each = 0; each < test.lists; ++each) {
      const float away =
          float_distance(values.data(), test.centroids->values.data() + each * dim, dim, test.metric);
      if (away < least) list = each, least = away;
    }
    if (test.lists > 0) found.lists.push_back(list);
    for (std::int64_t k = 0; k < dim && test.codebooks && test.by_residual; ++k)
      values[at(k)] -= test.centroids->values[at(list * dim + k)];
    for (int part = 0; part < test.parts; ++part) {
      int nearest = 0;
      least = std::numeric_limits<float>::infinity();
      for (int entry = 0; entry < kEntries; ++entry) {
        const float* book = test.codebooks->values.data() + (part * kEntries + entry) * test.width;
        float sum = 0;
        for (int k = 0; k < test.width; ++k) {
          const float difference = values[at(part * test.width + k)] - book[k];
          sum = std::fma(difference, difference, sum);
        }
        if (sum < least) nearest = entry, least = sum;
      }
      found.codes.push_back(static_cast<std::uint8_t>(nearest));
    }
  }
  return found;
}

TEST(cuda_lists_and_codes_are_the_nearest_ones) {
  for (const AssignCase& test : cases()) {
    const std::string name = std::to_string(test.rows) + " rows, " + std::to_string(test.lists) + " lists";
    const Found wanted = expected(test);
    for (unsigned seed = 1; seed < 4; ++seed) {
      const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = seed});
      {
        const auto assigner = test.on(device, seed == 1 ? 128 : 256);
        CHECK(run(*assigner, test.data) == wanted, name);
        CHECK(run(*assigner, test.data) == wanted, name + ", again");
        Found there = empty_result(*assigner, at(test.rows));
        assigner->assign_on_device(test.data.data(), test.rows, there.lists.data(), there.codes.data());
        CHECK(there == wanted, name + ", on the device");
      }
      check_all_freed(*device);
    }
    // The CPU sums alike where it rounds products with their sums.
    const auto on_cpu = run(*make_assigner(test.centroids, test.codebooks, false), test.data, 2);
    std::size_t other_lists = 0;
    for (std::size_t row = 0; row < on_cpu.lists.size(); ++row)
      other_lists += on_cpu.lists[row] != wanted.lists[row];
    CHECK(other_lists * 100 <= wanted.lists.size(), name + ": " + std::to_string(other_lists));
  }
}

TEST(cuda_lists_are_searched_in_chunks) {
  const AssignCase test = many_lists();
  const auto device = std::make_shared<FakeDevice>();
  {
    const auto assigner = test.on(device);
    CHECK(run(*assigner, test.data) == expected(test));
    CHECK(assigner->description().find("lists 16384+") != std::string::npos, assigner->description());
  }
  check_all_freed(*device);
}

// Scores that say nothing at all: every list is compared.
TEST(cuda_rows_and_centroids_near_the_largest_float_have_a_list) {
  AssignCase test{130, 9, 2, 2};
  for (std::size_t i = 0; i < test.data.size(); i += 5) test.data[i] *= 1e37f;
  for (std::size_t i = 0; i < 4; ++i) test.centroids->values[i] *= 1e30f;
  const auto device = std::make_shared<FakeDevice>();
  CHECK(run(*test.on(device), test.data) == expected(test));
}

TEST(cuda_a_far_centroid_does_not_blur_the_scores_of_others) {
  for (Metric metric : {Metric::kL2, Metric::kInnerProduct}) {
    AssignCase test{300, 60, 3, 4, metric};
    const cuda::ScoreErrors plain = cuda::ListScores(*test.centroids).errors;
    for (std::size_t i = 24; i < 36; ++i) test.centroids->values[i] *= 1e15f;
    std::copy_n(test.centroids->values.begin() + 24, 12, test.data.begin());
    const cuda::ScoreErrors errors = cuda::ListScores(*test.centroids).errors;
    CHECK(errors.by_length == plain.by_length && errors.by_centroid == plain.by_centroid);
    CHECK(errors.always < 1.5f * plain.always && errors.reach < 1.5f * plain.reach);
    CHECK(run(*test.on(std::make_shared<FakeDevice>()), test.data) == expected(test));
  }
}

// Rows at one point, centroids that are equal: the first of them.
TEST(cuda_the_first_of_equal_lists_is_taken) {
  AssignCase test{5, 40, 1, 3};
  for (std::size_t i = 0; i < test.centroids->values.size(); ++i)
    test.centroids->values[i] = i < 30 ? 5.f : 0.25f;
  for (float& value : test.codebooks->values) value = 1;
  const Found found = run(*test.on(std::make_shared<FakeDevice>()), test.data);
  for (std::int64_t list : found.lists) CHECK(list == 10 || list == 0);
  for (std::uint8_t code : found.codes) CHECK(code == 0);
}

TEST(cuda_rows_that_are_not_finite_are_named) {
  for (const AssignCase& original : cases()) {
    AssignCase test = original;
    const std::int64_t bad = test.rows > 300 ? 401 : test.rows - 1;
    for (std::int64_t row = bad; row < test.rows; ++row)
      test.data[at(row * test.dim() + row % test.dim())] =
          row % 2 == 0 ? std::nanf("") : -std::numeric_limits<float>::infinity();
    const auto device = std::make_shared<FakeDevice>();
    {
      const auto assigner = test.on(device);
      bool thrown = false;
      try {
        run(*assigner, test.data);
      } catch (const NonFiniteRow& error) {
        thrown = true;
        CHECK(error.row() == bad && std::string(error.array()) == "rows", error.what());
      }
      CHECK(thrown);
      CHECK(run(*assigner, original.data) == expected(original));
    }
    check_all_freed(*device);
  }
}

TEST(cuda_an_assigner_stays_within_its_memory) {
  const AssignCase test{700, 33, 5, 4};
  const std::size_t enough = cuda::OneDeviceAssigner::bytes_for(test.assignment(), 128);
  for (std::int64_t rows : {128, 512, 1024}) {
    const auto device = std::make_shared<FakeDevice>();
    const auto assigner = test.on(device, rows);
    CHECK(device->peak() <= cuda::OneDeviceAssigner::bytes_for(test.assignment(), rows));
    CHECK(assigner->device_bytes() >= device->peak());
    CHECK(assigner->description().find("Fake, blocks " + std::to_string(rows)) == 0, assigner->description());
  }
  const auto device = std::make_shared<FakeDevice>();
  bool thrown = false;
  try {
    cuda::OneDeviceAssigner(device, test.centroids, test.codebooks, enough - 1);
  } catch (const cuda::OutOfDeviceMemory& error) {
    thrown = std::string(error.what()).find("needs 32 MiB on cuda:0") != std::string::npos;
  }
  CHECK(thrown);
  check_all_freed(*device);
}

TEST(cuda_an_assigner_halves_its_blocks_where_memory_runs_out) {
  const AssignCase test{300, 33, 5, 4};
  int tries = 0;
  for (bool failed = true; failed; ++tries) {
    const auto device = std::make_shared<FakeDevice>();
    device->fail_at(tries + 1, FakeDevice::Failure::kOutOfMemory);
    {
      const auto assigner = test.on(device, 512);
      failed = device->has_failed();
      const std::string wanted = failed ? "blocks 256 128 (halved: cuda:0 ran out" : "blocks 512 256 128 (to";
      CHECK(assigner->description().find(wanted) != std::string::npos, assigner->description());
      CHECK(run(*assigner, test.data) == expected(test));
    }
    check_all_freed(*device);
  }
  CHECK(tries > 15, std::to_string(tries));
}

TEST(cuda_an_assigner_outlives_a_failure_anywhere) {
  const AssignCase test{700, 20, 2, 3};
  const Found wanted = expected(test);
  for (auto failure : {FakeDevice::Failure::kOnce, FakeDevice::Failure::kLost}) {
    const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = 3});
    std::unique_ptr<cuda::OneDeviceAssigner> assigner;
    int call = 1;
    for (bool failed = true; failed; ++call) {
      device->fail_at(call, failure);
      bool thrown = false;
      try {
        if (!assigner || call % 2 == 0) assigner = test.on(device);
        CHECK(run(*assigner, test.data) == wanted);
      } catch (const Error& error) {
        thrown = true;
        CHECK(error.kind() == ErrorKind::kResource, error.what());
      }
      failed = device->has_failed();
      const bool was_waiting = device->failed_call().starts_with("synchronize");
      CHECK(thrown || !failed || was_waiting, device->failed_call());
      CHECK(device->violations().empty(), device->violations());
    }
    device->fail_at(-1, failure);
    CHECK(call > 60, std::to_string(call));
    CHECK(run(*assigner, test.data) == wanted);
    assigner.reset();
    check_all_freed(*device);
  }
}

TEST(cuda_callers_take_turns) {
  const AssignCase test{700, 20, 2, 3};
  const Found wanted = expected(test);
  const auto device = std::make_shared<FakeDevice>(FakeOptions{.seed = 4});
  const auto assigner = test.on(device);
  std::vector<int> wrong(4, 0);
  {
    std::vector<std::jthread> callers;
    for (int& count : wrong)
      callers.emplace_back([&] { count += run(*assigner, test.data) == wanted ? 0 : 1; });
  }
  CHECK(wrong == std::vector<int>(4, 0));
  CHECK(device->violations().empty(), device->violations());
}

TEST(cuda_several_devices_share_rows) {
  AssignCase test{701, 20, 2, 3};
  const Found wanted = expected(test);
  std::vector<std::unique_ptr<Assigner>> assigners;
  for (int index = 0; index < 3; ++index)
    assigners.push_back(test.on(std::make_shared<FakeDevice>(FakeOptions{.seed = 5}, index)));
  const cuda::MultiAssigner assigner(std::move(assigners));
  CHECK(run(assigner, test.data, 4) == wanted);
  CHECK(run(assigner, std::vector<float>(test.data.begin(), test.data.begin() + test.dim())).lists.front() ==
        wanted.lists.front());
  for (int row : {650, 400}) {
    test.data[at(row * test.dim())] = std::nanf("");
    try {
      run(assigner, test.data);
      CHECK(false);
    } catch (const NonFiniteRow& error) {
      CHECK(error.row() == row, error.what());
    }
  }
}

TEST(cuda_an_assigner_refuses_what_does_not_fit_and_old_devices) {
  const AssignCase test{1, 4, 2, 3};
  auto message_of = [&](const auto& centroids, const auto& codebooks, FakeOptions options) -> std::string {
    try {
      cuda::make_device_assigner({std::make_shared<FakeDevice>(std::move(options))}, centroids, codebooks, 0);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  Codebooks other = *test.codebooks;
  other.part_dim = 1;
  other.values.resize(at(kEntries * 2));
  Centroids bad = *test.centroids;
  bad.values[3] = std::nanf("");
  const std::optional<Centroids> none;
  CHECK(message_of(none, std::optional<Codebooks>(), {}).find("neither centroids nor") != std::string::npos);
  CHECK(message_of(none, test.codebooks, {}).find("residuals need centroids") != std::string::npos);
  CHECK(message_of(test.centroids, std::optional(other), {}).find("rows of 2 dims") != std::string::npos);
  CHECK(message_of(std::optional(bad), test.codebooks, {}).find("NaN or infinity") != std::string::npos);
  CHECK(message_of(test.centroids, test.codebooks, {.major = 7}).find("too old") != std::string::npos);
  CHECK(
      message_of(test.centroids, test.codebooks, {.no_fused_output = {DType::kFloat32}}).find("no kernel") !=
      std::string::npos);
}

}  // namespace
}  // namespace fct::testing
