// The kernels of csrc/cuda/nvidia/assign_kernels.cu against plain loops, bit by bit: any number of rows,
// widths of parts below and above what is worked on at once, lists that fill no vector, scores of every kind.
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "check.h"
#include "cuda/nvidia/kernels.h"
#include "fake_assign.h"

namespace fct::testing {
namespace {

using cuda::AssignedRows;
using cuda::DeviceCentroids;
using cuda::DeviceCodebooks;
using cuda::ListSearch;
using cuda::Matrix;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kEntries = Codebooks::kEntries;

std::mt19937 random_bits(7);

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
std::int64_t padded(std::int64_t width) { return (width + 15) / 16 * 16; }
std::int64_t up_to(std::int64_t most) { return 1 + static_cast<std::int64_t>(random_bits()) % most; }

void ok(cudaError_t status) { CHECK(status == cudaSuccess, cudaGetErrorName(status)); }

// The same values on the host and on the device; none: null on both.
template <typename T>
class Both {
 public:
  explicit Both(std::vector<T> values) : host(std::move(values)) {
    if (host.empty()) return;
    ok(cudaMalloc(&device_, host.size() * sizeof(T)));
    ok(cudaMemcpy(device_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Both() { (void)cudaFree(device_); }
  Both(const Both&) = delete;
  Both& operator=(const Both&) = delete;

  T* on(bool is_device) {
    if (host.empty()) return nullptr;
    return is_device ? static_cast<T*>(device_) : host.data();
  }
  void compare(const std::string& what) const {
    std::vector<T> found(host.size());
    ok(cudaMemcpy(found.data(), device_, found.size() * sizeof(T), cudaMemcpyDeviceToHost));
    CHECK(std::memcmp(found.data(), host.data(), found.size() * sizeof(T)) == 0, what);
  }

  std::vector<T> host;

 private:
  void* device_ = nullptr;
};

std::vector<float> normal_values(std::int64_t count, float size = 1) {
  std::normal_distribution<float> normal;
  std::vector<float> values(at(count));
  for (float& value : values) value = size * normal(random_bits);
  return values;
}

struct Data {
  std::int64_t rows, lists, dim, parts;
  Both<float> data, values, mean, lengths, book;
  Both<std::int64_t> found_lists{{}}, first_bad{{cuda::kNoBadRow}};
  Both<std::uint8_t> codes;
  cuda::ScoreErrors errors{0.01f, 0.001f, 0.02f, 1e-7f, 3};
  Metric metric = random_bits() % 2 == 0 ? Metric::kL2 : Metric::kInnerProduct;

  static std::vector<float> lengths_of(std::int64_t count) {
    std::vector<float> lengths = normal_values(count);
    for (float& length : lengths) length = std::abs(length);
    return lengths;
  }
  static std::vector<std::int64_t> some_lists(std::int64_t rows, std::int64_t lists) {
    std::vector<std::int64_t> found(at(lists > 0 ? rows : 0));
    for (std::int64_t& list : found) list = up_to(lists) - 1;
    return found;
  }

  Data(std::int64_t rows_, std::int64_t lists_, std::int64_t dim_, std::int64_t parts_)
      : rows(rows_),
        lists(lists_),
        dim(dim_),
        parts(parts_),
        data(normal_values(rows * dim)),
        values(normal_values(lists * dim)),
        mean(normal_values(lists > 0 ? dim : 0)),
        lengths(lengths_of(padded(lists))),
        book(normal_values(parts > 0 ? dim * kEntries : 0)),
        found_lists(some_lists(rows, lists)),
        codes(std::vector<std::uint8_t>(at(rows * parts), 99)) {}
  AssignedRows assigned(bool is_device) {
    return {data.on(is_device), rows, found_lists.on(is_device), codes.on(is_device),
            first_bad.on(is_device)};
  }
  DeviceCentroids centroids(bool is_device) {
    return {values.on(is_device), mean.on(is_device), lengths.on(is_device), lists, dim, metric, errors};
  }
  DeviceCodebooks codebooks(bool is_device) {
    return {book.on(is_device), parts, dim / std::max<std::int64_t>(parts, 1)};
  }
  std::string name() const {
    return std::to_string(rows) + " rows, " + std::to_string(lists) + " lists, " + std::to_string(dim) +
           " dims, " + std::to_string(parts) + " parts";
  }
};

TEST(shifting_pads_measures_and_finds_rows_that_are_not_finite) {
  ok(cudaSetDevice(0));
  for (unsigned seed = 0; seed < 80; ++seed) {
    random_bits.seed(seed);
    const bool has_lists = seed % 4 != 0;
    const std::int64_t rows = up_to(40), dim = up_to(70), block = rows + up_to(9) - 1;
    Data made(rows, has_lists ? 3 : 0, dim, 0);
    std::vector<float> values = made.data.host;
    if (seed % 3 == 0)
      for (int bad = 0; bad < 3; ++bad)
        values[random_bits() % values.size()] = seed % 2 == 0 ? std::nanf("") : -kInfinity;
    if (seed % 5 == 0) values[random_bits() % values.size()] = 3e38f;
    Both<float> data(values);
    Both<float> to(std::vector<float>(at(has_lists ? block * padded(dim) : 0), 5));
    Both<ListSearch> searches(std::vector<ListSearch>(at(has_lists ? rows : 0)));
    for (bool is_device : {false, true}) {
      AssignedRows assigned = made.assigned(is_device);
      assigned.rows = data.on(is_device);
      const Matrix matrix{to.on(is_device), DType::kTf32, padded(dim), 1};
      const std::int64_t columns = has_lists ? padded(dim) : dim;
      if (is_device)
        ok(cuda::kernels::shift(assigned, made.centroids(true), matrix, columns, block, searches.on(true),
                                nullptr));
      else
        shift_rows(assigned, made.centroids(false), matrix, columns, block, searches.on(false));
    }
    made.first_bad.compare(made.name() + ", first bad row");
    if (!has_lists) continue;
    // Lengths are summed in another order, in float64: they end as the same float, or nearly so.
    std::vector<ListSearch> found(at(rows));
    std::vector<float> shifted(to.host.size());
    ok(cudaMemcpy(found.data(), searches.on(true), found.size() * sizeof(ListSearch),
                  cudaMemcpyDeviceToHost));
    ok(cudaMemcpy(shifted.data(), to.on(true), shifted.size() * sizeof(float), cudaMemcpyDeviceToHost));
    for (std::size_t row = 0; row < found.size(); ++row) {
      const ListSearch &search = found[row], &wanted = searches.host[row];
      CHECK(search.error == wanted.error || std::abs(search.error / wanted.error - 1) < 1e-6f, made.name());
      CHECK(search.slack == wanted.slack || std::abs(search.slack / wanted.slack - 1) < 1e-6f, made.name());
      CHECK(search.floor == -kInfinity && std::isnan(search.away) && search.list == -1);
    }
    for (std::size_t i = 0; i < shifted.size(); ++i)
      CHECK(shifted[i] == to.host[i] || (std::isnan(shifted[i]) && std::isnan(to.host[i])), made.name());
  }
}

// In one chunk or two; with errors that leave one list, some, or all.
TEST(searching_finds_the_list_of_least_distance) {
  ok(cudaSetDevice(0));
  for (unsigned seed = 0; seed < 60; ++seed) {
    random_bits.seed(seed);
    const std::int64_t rows = up_to(20), dim = up_to(50), lists = seed % 10 == 0 ? up_to(300) : up_to(50);
    const std::int64_t chunk = seed % 3 == 0 ? padded(1 + lists / 2) : padded(lists);
    Data made(rows, lists, dim, 0);
    if (seed % 4 == 1)  // equals
      for (std::int64_t i = dim; i < lists * dim; ++i)
        made.values.host[at(i)] = made.values.host[at(i % dim)];
    Both<float> values(made.values.host);
    constexpr float kErrors[] = {0, 0.05f, 1, kInfinity};
    std::vector<ListSearch> begun(at(rows));
    for (ListSearch& search : begun)
      search = {kErrors[random_bits() % 4], seed % 2 == 0 ? 0.f : 0.1f, -kInfinity, std::nanf(""), -1};
    Both<ListSearch> searches(begun);
    for (std::int64_t first = 0; first < lists; first += chunk) {
      const std::int64_t here = std::min(chunk, lists - first);
      std::vector<float> random_scores = normal_values(rows * padded(here));
      if (seed % 5 == 2) random_scores[random_bits() % random_scores.size()] = std::nanf("");
      Both<float> scores(random_scores);
      for (bool is_device : {false, true}) {
        DeviceCentroids centroids = made.centroids(is_device);
        centroids.values = values.on(is_device);
        const Matrix matrix{scores.on(is_device), DType::kFloat32, padded(here), 1};
        if (is_device)
          ok(cuda::kernels::search(made.assigned(true), centroids, matrix, first, here, searches.on(true),
                                   nullptr));
        else
          search_rows(made.assigned(false), centroids, matrix, first, here, searches.on(false));
      }
      ok(cudaStreamSynchronize(nullptr));  // before the scores go
    }
    made.found_lists.compare(made.name() + ", seed " + std::to_string(seed));
  }
}

TEST(encoding_finds_the_nearest_entries) {
  ok(cudaSetDevice(0));
  std::vector<std::pair<std::int64_t, std::int64_t>> shapes;  // parts and their width
  for (std::int64_t width = 1; width <= 16; ++width) shapes.emplace_back(1 + width % 3, width);
  for (std::int64_t width : {17, 32, 41}) shapes.emplace_back(2, width);
  shapes.emplace_back(300, 1);
  for (unsigned seed = 0; seed < 2 * shapes.size(); ++seed) {
    random_bits.seed(seed);
    const auto [parts, width] = shapes[seed / 2];
    const bool by_residual = seed % 2 == 0;
    Data made(seed % 7 == 0 ? 64
              : parts > 99  ? up_to(9)
                            : up_to(140),
              by_residual ? up_to(9) : 0, parts * width, parts);
    if (seed % 5 == 0)
      for (float& value : made.book.host) value = std::round(value);  // equals
    Both<float> book(made.book.host);
    for (bool is_device : {false, true}) {
      DeviceCodebooks codebooks = made.codebooks(is_device);
      codebooks.values = book.on(is_device);
      if (is_device)
        ok(cuda::kernels::encode(made.assigned(true), made.centroids(true), codebooks, nullptr));
      else
        encode_rows(made.assigned(false), made.centroids(false), codebooks);
    }
    made.codes.compare(made.name());
  }
}

}  // namespace
}  // namespace fct::testing
