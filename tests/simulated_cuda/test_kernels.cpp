// The kernels of csrc/cuda/nvidia/kernels.cu against plain loops: every type in and out, odd widths, any
// stride, addresses that suit no wide access, rows too wide for registers, NaN and infinity anywhere. What
// lies between the rows is compared too.
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "check.h"
#include "cuda/nvidia/kernels.h"
#include "fake_rows.h"

namespace fct::testing {
namespace {

using cuda::Extent;
using cuda::Matrix;
using cuda::RowChecks;

constexpr int kCases = 150;
constexpr std::int64_t kWidths[] = {1,  2,   7,   8,   9,   15,   16,   31,   33,
                                    64, 100, 255, 256, 300, 1000, 1024, 1025, 1100};
constexpr std::size_t kSlack = 64;  // elements behind the rows

std::mt19937 random_bits(5);

template <typename T>
T one_of(std::initializer_list<T> choices) {
  return choices.begin()[random_bits() % choices.size()];
}
std::int64_t width() { return kWidths[random_bits() % std::size(kWidths)]; }
DType any_type() {
  return one_of({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8, DType::kTf32});
}

void ok(cudaError_t status) { CHECK(status == cudaSuccess, cudaGetErrorName(status)); }

// The same bytes on the host and on the device.
class Bytes {
 public:
  explicit Bytes(std::size_t bytes, int fill = 0) : host(bytes, static_cast<char>(fill)) {
    ok(cudaMalloc(&device_, std::max<std::size_t>(bytes, 1)));
    upload();
  }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { (void)cudaFree(device_); }
  void upload() { ok(cudaMemcpy(device_, host.data(), host.size(), cudaMemcpyHostToDevice)); }
  std::vector<char> download() const {
    std::vector<char> bytes(host.size());
    ok(cudaMemcpy(bytes.data(), device_, bytes.size(), cudaMemcpyDeviceToHost));
    return bytes;
  }
  char* device() const { return static_cast<char*>(device_); }

  std::vector<char> host;

 private:
  void* device_ = nullptr;
};

// Rows somewhere in an allocation, with NaN where none is.
struct Rows {
  std::int64_t rows, columns, stride;
  DType dtype;
  float scale;
  std::size_t offset;  // elements before the first row
  Bytes bytes;

  Rows(std::int64_t rows_, std::int64_t columns_, DType type)
      : rows(rows_),
        columns(columns_),
        stride(one_of({columns_, columns_ + 1, (columns_ + 15) / 16 * 16, (columns_ + 31) / 16 * 16})),
        dtype(type),
        scale(type == DType::kFloat8 ? one_of({0.25f, 1.f, 16.f}) : 1),
        offset(one_of<std::size_t>({0, 0, 1, 8, 16})),
        bytes((offset + static_cast<std::size_t>(rows_ * stride) + kSlack) * size_of(type), 0xff) {}

  Matrix on_host() { return {bytes.host.data() + offset * size_of(dtype), dtype, stride, scale}; }
  Matrix on_device() { return {bytes.device() + offset * size_of(dtype), dtype, stride, scale}; }

  void fill(bool has_bad) {
    std::normal_distribution<float> normal;
    const float size = one_of({1e-6f, 1.f, 300.f, 60000.f});
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t column = 0; column < columns; ++column)
        store_element(on_host(), row, column, size * normal(random_bits));
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (int bad = has_bad ? 4 : 0; bad > 0; --bad)
      store_element(on_host(), static_cast<std::int64_t>(random_bits()) % rows,
                    static_cast<std::int64_t>(random_bits()) % columns,
                    one_of({kInfinity, -kInfinity, std::nanf(""), 1e30f, 3.4e38f}));
    bytes.upload();
  }
};

float largest_step(DType type) {
  if (type == DType::kFloat32) return 1e-6f;
  return type == DType::kFloat16 || type == DType::kTf32 ? 1e-3f : type == DType::kBFloat16 ? 8e-3f : 0.13f;
}

// `steps`: by how many of its type's steps a number may be off.
void compare(Rows& rows, int steps, const std::string& what) {
  const auto found = rows.bytes.download();
  const auto count = static_cast<std::int64_t>(found.size() / size_of(rows.dtype));
  const Matrix wanted{rows.bytes.host.data(), rows.dtype, 1, 1};
  const Matrix got{const_cast<char*>(found.data()), rows.dtype, 1, 1};
  for (std::int64_t i = 0; i < count; ++i) {
    const float a = load_element(got, i, 0), b = load_element(wanted, i, 0);
    const bool same = a == b || (std::isnan(a) && std::isnan(b));
    const float off =
        static_cast<float>(steps) * largest_step(rows.dtype) * std::abs(b) + (steps > 0 ? 1e-7f : 0.f);
    CHECK(same || std::abs(a - b) <= off, what + ", element " + std::to_string(i) + ": " + std::to_string(a) +
                                              ", wanted " + std::to_string(b));
  }
}

struct Checks {
  explicit Checks(std::int64_t rows)
      : flags(static_cast<std::size_t>(rows)), first_bad(sizeof(std::int64_t), cuda::kNoBadRowByte) {
    for (char& flag : flags.host) flag = random_bits() % 8 == 0 ? 1 : 0;
    flags.upload();
  }
  RowChecks of(bool is_device) {
    return {reinterpret_cast<std::uint8_t*>(is_device ? flags.device() : flags.host.data()),
            reinterpret_cast<std::int64_t*>(is_device ? first_bad.device() : first_bad.host.data()), largest};
  }
  void compare(const std::string& what) {
    CHECK(flags.download() == flags.host, what + ", flags");
    CHECK(first_bad.download() == first_bad.host, what + ", first bad row");
  }
  Bytes flags, first_bad;
  float largest = random_bits() % 2 == 0 ? FLT_MAX : 1.5f;
};

std::string name_of(const Rows& from, const Rows& to) {
  return std::to_string(from.rows) + " x " + std::to_string(from.columns) + ", types " +
         std::to_string(static_cast<int>(from.dtype)) + " to " + std::to_string(static_cast<int>(to.dtype));
}

template <typename Body>
void for_cases(const Body& body) {
  ok(cudaSetDevice(0));
  for (int seed = 0; seed < kCases; ++seed) {
    random_bits.seed(static_cast<unsigned>(seed));
    body(1 + static_cast<std::int64_t>(random_bits() % 40), width(), seed % 2 == 0);
  }
}

std::int64_t padded(std::int64_t columns) { return (columns + 15) / 16 * 16; }

TEST(loading_casts_pads_and_finds_rows_that_are_not_finite) {
  for_cases([](std::int64_t rows, std::int64_t columns, bool has_bad) {
    const std::int64_t block = rows + static_cast<std::int64_t>(random_bits() % 9);
    Rows from(rows, columns, one_of({DType::kFloat32, DType::kFloat16})),
        to(block, padded(columns), any_type());
    Checks checks(block);
    from.fill(has_bad);
    load_rows(from.on_host(), to.on_host(), {rows, columns, padded(columns)}, block, checks.of(false));
    ok(cuda::kernels::load(from.on_device(), to.on_device(), {rows, columns, padded(columns)}, block,
                           checks.of(true), nullptr));
    compare(to, 0, name_of(from, to));
    checks.compare(name_of(from, to));
  });
}

TEST(storing_casts_and_makes_nan_of_bad_rows) {
  for_cases([](std::int64_t rows, std::int64_t columns, bool has_bad) {
    Rows from(rows, columns, any_type()), to(rows, columns, one_of({DType::kFloat32, DType::kFloat16}));
    Checks checks(rows);
    from.fill(has_bad);
    store_rows(from.on_host(), to.on_host(), {rows, columns, padded(columns)}, checks.of(false));
    ok(cuda::kernels::store(from.on_device(), to.on_device(), {rows, columns, padded(columns)},
                            checks.of(true), nullptr));
    compare(to, 0, name_of(from, to));
    checks.compare(name_of(from, to));
  });
}

TEST(converting_activates_between_any_types) {
  for_cases([](std::int64_t rows, std::int64_t columns, bool has_bad) {
    Rows from(rows, columns, any_type()), to(rows, padded(columns), any_type());
    const auto activation = one_of({Activation::kNone, Activation::kRelu, Activation::kGelu});
    from.fill(has_bad);
    convert_rows(from.on_host(), to.on_host(), {rows, columns, padded(columns)}, activation);
    ok(cuda::kernels::convert(from.on_device(), to.on_device(), {rows, columns, padded(columns)}, activation,
                              nullptr));
    compare(to, activation == Activation::kGelu ? 1 : 0, name_of(from, to));
  });
}

TEST(converting_in_place) {
  for_cases([](std::int64_t rows, std::int64_t columns, bool has_bad) {
    Rows both(rows, padded(columns), any_type());
    both.fill(has_bad);
    const Extent extent{rows, columns, padded(columns)};
    convert_rows(both.on_host(), both.on_host(), extent, Activation::kRelu);
    ok(cuda::kernels::convert(both.on_device(), both.on_device(), extent, Activation::kRelu, nullptr));
    compare(both, 0, name_of(both, both));
  });
}

TEST(flagging_looks_at_every_value) {
  for_cases([](std::int64_t rows, std::int64_t columns, bool has_bad) {
    Rows from(rows, columns, any_type());
    Checks checks(rows);
    from.fill(has_bad);
    flag_rows(from.on_host(), {rows, columns, columns}, checks.of(false).flags);
    ok(cuda::kernels::flag(from.on_device(), {rows, columns, columns}, checks.of(true).flags, nullptr));
    checks.compare(name_of(from, from));
  });
}

TEST(adding_sums_in_float32) {
  for_cases([](std::int64_t rows, std::int64_t columns, bool has_bad) {
    Rows left(rows, columns, any_type()), right(rows, columns, any_type()),
        to(rows, padded(columns), any_type());
    left.fill(has_bad);
    right.fill(false);
    const Extent extent{rows, columns, padded(columns)};
    add_rows(left.on_host(), right.on_host(), to.on_host(), extent);
    ok(cuda::kernels::add(left.on_device(), right.on_device(), to.on_device(), extent, nullptr));
    compare(to, 0, name_of(left, to));
  });
}

TEST(normalizing_rows_of_any_size) {
  for_cases([](std::int64_t rows, std::int64_t columns, bool has_bad) {
    Rows from(rows, columns, any_type()), to(rows, padded(columns), any_type());
    from.fill(has_bad);
    const Extent extent{rows, columns, padded(columns)};
    normalize_rows(from.on_host(), to.on_host(), extent);
    ok(cuda::kernels::normalize(from.on_device(), to.on_device(), extent, nullptr));
    compare(to, 1, name_of(from, to));
  });
}

TEST(a_launch_that_is_refused_is_reported) {
  ok(cudaSetDevice(0));
  Rows rows(4, 16, DType::kFloat32);
  const auto no_stream = reinterpret_cast<cudaStream_t>(&rows);
  CHECK(cuda::kernels::convert(rows.on_device(), rows.on_device(), {4, 16, 16}, Activation::kNone,
                               no_stream) == cudaErrorInvalidResourceHandle);
}

}  // namespace
}  // namespace fct::testing
