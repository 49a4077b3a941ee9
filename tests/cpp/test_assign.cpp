// Lists, codes and k-means against plain loops in float64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "assign/list_search.h"
#include "check.h"
#include "cpu/linear_op.h"
#include "fct/assign.h"
#include "fct/error.h"
#include "random_values.h"

namespace fct::testing {
namespace {

constexpr int kEntries = Codebooks::kEntries;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

struct Case {
  int rows, lists, parts, width;
  Metric metric = Metric::kL2;
  bool by_residual = true;
  float shift = 0;

  int dim() const { return parts * width; }
  Centroids centroids() const {
    return {lists, dim(), metric, random_values(std::int64_t{lists} * dim(), 2, shift)};
  }
  Codebooks codebooks() const {
    return {parts, width, by_residual, random_values(std::int64_t{kEntries} * dim(), 3)};
  }
  std::vector<float> data() const { return random_values(std::int64_t{rows} * dim(), 1, shift); }
};

// More groups and tiles than one, rows that do not fill them, chunks of lists, widths with kernels and
// without.
const Case kCases[] = {
    {1, 1, 1, 1},
    {300, 7, 3, 2},
    {129, 1500, 5, 4},
    {17, 64, 2, 8, Metric::kInnerProduct},
    {200, 33, 3, 5, Metric::kL2, false},
    {140, 90, 4, 17, Metric::kInnerProduct, true, 30},
    {140, 90, 4, 4, Metric::kL2, true, 1000},
};

struct Found {
  std::vector<std::int64_t> lists;
  std::vector<std::uint8_t> codes;
  bool operator==(const Found&) const = default;
};

Found run(const Assigner& assigner, const std::vector<float>& rows, int threads) {
  const std::size_t count = rows.size() / at(assigner.dim());
  Found found{std::vector<std::int64_t>(count), std::vector<std::uint8_t>(count * at(assigner.parts()))};
  assigner.assign(rows.data(), static_cast<std::int64_t>(count), threads, found.lists.data(),
                  found.codes.data());
  return found;
}

double distance(const float* left, const float* right, int dim, Metric metric = Metric::kL2) {
  double sum = 0;
  for (int k = 0; k < dim; ++k) {
    const double a = static_cast<double>(left[k]), b = static_cast<double>(right[k]);
    sum += metric == Metric::kL2 ? (a - b) * (a - b) : -a * b;
  }
  return sum;
}

// Whether `chosen` is as near as any of `count` vectors, up to what float32 can tell.
bool is_nearest(const float* row, const float* vectors, int count, int dim, std::int64_t chosen,
                Metric metric) {
  double least = std::numeric_limits<double>::infinity(),
         scale = distance(row, row, dim, Metric::kInnerProduct);
  for (int i = 0; i < count; ++i) least = std::min(least, distance(row, vectors + i * dim, dim, metric));
  const double found = distance(row, vectors + chosen * dim, dim, metric);
  return chosen >= 0 && chosen < count && found <= least + 1e-5 * (std::abs(least) + std::abs(scale) * 1e-2);
}

TEST(lists_and_codes_are_the_nearest_ones) {
  for (const Case& test : kCases)
    for (bool reduced : {false, true}) {
      const auto centroids = test.centroids();
      const auto codebooks = test.codebooks();
      const auto rows = test.data();
      std::unique_ptr<Assigner> assigner;
      try {
        assigner = make_assigner(centroids, codebooks, reduced);
      } catch (const Error& error) {  // no bfloat16 with these instructions
        CHECK(reduced && error.kind() == ErrorKind::kUnsupported, error.what());
        continue;
      }
      const Found found = run(*assigner, rows, 1);
      for (std::int64_t row = 0; row < test.rows; ++row) {
        const float* values = rows.data() + row * test.dim();
        const std::int64_t list = found.lists[at(row)];
        CHECK(is_nearest(values, centroids.values.data(), test.lists, test.dim(), list, test.metric));
        std::vector<float> encoded(values, values + test.dim());
        for (int k = 0; k < test.dim() && test.by_residual; ++k)
          encoded[at(k)] -= centroids.values[at(list * test.dim() + k)];
        for (int part = 0; part < test.parts; ++part)
          CHECK(is_nearest(encoded.data() + part * test.width,
                           codebooks.values.data() + at(part) * kEntries * at(test.width), kEntries,
                           test.width, found.codes[at(row * test.parts + part)], Metric::kL2));
      }
    }
}

TEST(lists_and_codes_depend_on_the_row_alone) {
  for (const Case& test : kCases) {
    const auto assigner = make_assigner(test.centroids(), test.codebooks(), false);
    const auto rows = test.data();
    const Found all = run(*assigner, rows, 1);
    CHECK(run(*assigner, rows, 3) == all);
    for (std::int64_t row = 0; row < test.rows; row += 16) {
      const Found one =
          run(*assigner, {rows.begin() + row * test.dim(), rows.begin() + (row + 1) * test.dim()}, 1);
      CHECK(one.lists[0] == all.lists[at(row)]);
      CHECK(std::equal(one.codes.begin(), one.codes.end(), all.codes.begin() + row * test.parts));
    }
  }
}

TEST(the_lowest_number_wins_among_equals) {
  const Case test{40, 3, 2, 4};
  auto centroids = test.centroids();
  auto codebooks = test.codebooks();
  const auto first = centroids.values;
  for (int i = 0; i < 50; ++i) centroids.values.insert(centroids.values.end(), first.begin(), first.end());
  centroids.count *= 51;
  for (int part = 0; part < test.parts; ++part) {  // every entry twice
    const auto book = codebooks.values.begin() + part * kEntries * test.width;
    std::copy(book, book + kEntries / 2 * test.width, book + kEntries / 2 * test.width);
  }
  const Found found = run(*make_assigner(centroids, codebooks, false), test.data(), 1);
  for (std::int64_t list : found.lists) CHECK(list < 3);
  for (int code : found.codes) CHECK(code < kEntries / 2);
}

// Orthonormal ones, of values without a relation to the centroids.
Directions directions_of(int count, int dim) {
  Directions directions{count, dim, random_values(std::int64_t{count} * dim, 4)};
  for (int i = 0; i < count; ++i) {
    float* values = directions.values.data() + i * dim;
    for (int pass = 0; pass < 2; ++pass)  // the second takes away what rounding left
      for (int j = 0; j < i; ++j) {
        const float* other = directions.values.data() + j * dim;
        const double along = -distance(values, other, dim, Metric::kInnerProduct);
        for (int k = 0; k < dim; ++k) values[k] -= static_cast<float>(along * static_cast<double>(other[k]));
      }
    const double length = std::sqrt(-distance(values, values, dim, Metric::kInnerProduct));
    for (int k = 0; k < dim; ++k) values[k] = static_cast<float>(static_cast<double>(values[k]) / length);
  }
  return directions;
}

TEST(huge_values_are_assigned_and_bad_ones_named) {
  const Case test{300, 5, 2, 4};
  auto rows = test.data();
  for (std::size_t i = 0; i < 8; ++i) rows[8 + i] = i % 2 ? 3e38f : -3e38f;
  const auto assigner = make_assigner(test.centroids(), test.codebooks(), false);
  const Found found = run(*assigner, rows, 2);
  for (std::int64_t list : found.lists) CHECK(list >= 0 && list < 5);
  CHECK(found.lists[1] == 0);  // as far from all as float32 can tell
  const auto directed =
      make_assigner(test.centroids(), test.codebooks(), false, std::nullopt, directions_of(3, 8));
  CHECK(run(*directed, rows, 1) == found);
  rows[290 * 8] = rows[200 * 8 + 3] = std::numeric_limits<float>::quiet_NaN();
  for (int threads : {1, 3}) try {
      run(*assigner, rows, threads);
      CHECK(false);
    } catch (const NonFiniteRow& error) {
      CHECK(error.row() == 200);
    }
}

Groups groups_of(const Centroids& centroids, int count, int probes) {
  const auto begin = centroids.values.begin();
  return {count, probes, {begin, begin + std::int64_t{count} * centroids.dim}};
}

TEST(two_levels_find_what_one_finds_if_all_groups_are_searched) {
  for (const Case& test : kCases) {
    const int groups = std::min(test.lists, 40);
    const auto all = make_assigner(test.centroids(), test.codebooks(), false);
    const auto levels =
        make_assigner(test.centroids(), test.codebooks(), false, groups_of(test.centroids(), groups, groups));
    CHECK(run(*levels, test.data(), 2) == run(*all, test.data(), 1));
  }
}

TEST(two_levels_depend_on_the_row_alone_and_miss_few_near_lists) {
  const Case test{2500, 600, 2, 4};  // several tiles
  const auto centroids = test.centroids();
  const auto rows = test.data();
  const auto assigner = make_assigner(centroids, test.codebooks(), false, groups_of(centroids, 50, 12));
  const Found found = run(*assigner, rows, 1);
  CHECK(run(*assigner, rows, 3) == found);
  for (std::int64_t row = 0; row < test.rows; row += 97) {
    const Found one =
        run(*assigner, {rows.begin() + row * test.dim(), rows.begin() + (row + 1) * test.dim()}, 1);
    CHECK(one.lists[0] == found.lists[at(row)]);
    CHECK(std::equal(one.codes.begin(), one.codes.end(), found.codes.begin() + row * test.parts));
  }
  const Found exact = run(*make_assigner(centroids, test.codebooks(), false), rows, 1);
  int same = 0;
  for (std::size_t row = 0; row < found.lists.size(); ++row) same += found.lists[row] == exact.lists[row];
  CHECK(same > 0.9 * test.rows && same < test.rows);
}

TEST(groups_that_do_not_fit_are_refused) {
  const Case test{1, 60, 2, 4};
  const auto centroids = test.centroids();
  Groups narrow = groups_of(centroids, 9, 3), bad = narrow;
  narrow.centers.pop_back();
  bad.centers[5] = std::numeric_limits<float>::infinity();
  for (const Groups& groups : {groups_of(centroids, 9, 0), groups_of(centroids, 9, 10), narrow, bad}) try {
      make_assigner(centroids, std::nullopt, false, groups);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kArray);
    }
}

TEST(directions_change_no_list) {
  for (const Case& test : kCases) {
    const Found all = run(*make_assigner(test.centroids(), test.codebooks(), false), test.data(), 1);
    for (int count : {1, test.dim() / 2, test.dim()}) {
      const auto directions = directions_of(std::max(count, 1), test.dim());
      const auto assigner = make_assigner(test.centroids(), test.codebooks(), true, std::nullopt, directions);
      CHECK(run(*assigner, test.data(), 2) == all);
    }
  }
}

TEST(directions_that_do_not_fit_are_refused) {
  const Case test{1, 60, 2, 4};
  Directions short_ones = directions_of(3, 8), oblique = short_ones, narrow = directions_of(3, 7);
  for (float& value : short_ones.values) value *= 0.9f;
  oblique.values[8] += 0.1f;
  Directions many = directions_of(8, 8);
  many.count = 9;
  many.values.resize(72);
  for (const Directions& directions : {short_ones, oblique, narrow, many}) try {
      make_assigner(test.centroids(), std::nullopt, false, std::nullopt, directions);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kArray);
    }
  try {
    make_assigner(test.centroids(), std::nullopt, false, groups_of(test.centroids(), 9, 3),
                  directions_of(3, 8));
    CHECK(false);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kArray);
  }
}

// One centroid a million times as long as the others, or centroids nearer to each other than floats multiply.
TEST(centroids_of_any_length_are_told_apart) {
  const Case test{300, 70, 3, 4};
  for (float scale : {1e6f, 1e-25f}) {
    auto centroids = test.centroids();
    auto rows = test.data();
    const auto begin = centroids.values.begin() + 5 * test.dim();
    if (scale > 1)
      for (auto value = begin; value < begin + test.dim(); ++value) *value *= scale;
    else
      for (auto* values : {&centroids.values, &rows})
        for (float& value : *values) value *= scale;
    std::vector<std::unique_ptr<Assigner>> assigners;
    assigners.push_back(make_assigner(centroids, std::nullopt, false));
    assigners.push_back(make_assigner(centroids, std::nullopt, false, groups_of(centroids, 8, 8)));
    assigners.push_back(
        make_assigner(centroids, std::nullopt, false, std::nullopt, directions_of(5, test.dim())));
    for (const auto& assigner : assigners) {
      const Found found = run(*assigner, rows, 1);
      for (std::int64_t row = 0; row < test.rows; ++row)
        if (scale > 1)
          CHECK(is_nearest(rows.data() + row * test.dim(), centroids.values.data(), test.lists, test.dim(),
                           found.lists[at(row)], test.metric));
        else  // squares vanish: the first of equals
          CHECK(found.lists[at(row)] == 0);
    }
  }
}

// How many lists of all rows are left to be settled by the distance itself.
std::size_t candidates_of(const assign::ListSearch& search, const std::vector<float>& rows, int dim) {
  const auto count = static_cast<std::int64_t>(rows.size()) / dim;
  std::vector<assign::Found> found(at(search.tile_rows()));
  const auto workspace = search.make_workspace();
  std::size_t candidates = 0;
  for (std::int64_t first = 0; first < count; first += search.tile_rows()) {
    const auto here = std::min<std::int64_t>(search.tile_rows(), count - first);
    search.search(rows.data() + first * dim, here, found.data(), *workspace);
    for (std::int64_t row = 0; row < here; ++row)
      for (const auto& candidate : found[at(row)].candidates)
        candidates += !(candidate.high < found[at(row)].floor);
  }
  return candidates;
}

TEST(a_far_centroid_leaves_the_others_told_apart) {
  const Case plain{500, 300, 4, 4}, inner{500, 300, 4, 4, Metric::kInnerProduct};
  const int dim = plain.dim();
  for (const auto& [test, scale] : {std::pair{plain, 1e6f},
                                    {plain, 1e15f},
                                    {plain, 1e18f},  // on the edge of what is multiplied
                                    {plain, 3e37f},
                                    {inner, 1e6f},
                                    {inner, 1e15f}}) {
    Centroids centroids = test.centroids();
    auto rows = test.data();
    const auto far = centroids.values.begin() + 5 * dim;
    for (auto value = far; value < far + dim; ++value) *value *= scale;
    std::copy(far, far + dim, rows.begin());
    const std::vector<float> near_rows(rows.begin() + dim, rows.end());
    std::vector<std::unique_ptr<assign::ListSearch>> searches;
    searches.push_back(assign::make_integer_search(centroids));
    searches.push_back(assign::make_integer_search(centroids, directions_of(12, dim)));
    searches.push_back(assign::make_two_level_search(centroids, groups_of(centroids, 20, 20)));
    try {
      searches.push_back(assign::make_bfloat_search(centroids, *cpu::make_onednn_library()));
    } catch (const Error& error) {  // no bfloat16 with these instructions
      CHECK(error.kind() == ErrorKind::kUnsupported, error.what());
    }
    for (const auto& search : searches)
      CHECK(candidates_of(*search, near_rows, dim) < 2 * near_rows.size() / at(dim));
    const Found found = run(*make_assigner(centroids, std::nullopt, false), rows, 1);
    CHECK(run(*make_assigner(centroids, std::nullopt, true, std::nullopt, directions_of(12, dim)), rows, 2) ==
          found);
    for (std::int64_t row = scale < 1e19f ? 0 : 1; row < test.rows; ++row)  // where squares are floats
      CHECK(is_nearest(rows.data() + row * dim, centroids.values.data(), test.lists, dim,
                       found.lists[at(row)], test.metric));
  }
}

double error_of(const std::vector<float>& rows, const Centroids& centroids) {
  const auto found = run(*make_assigner(centroids, std::nullopt, false), rows, 1);
  double sum = 0;
  for (std::size_t row = 0; row < found.lists.size(); ++row)
    sum += distance(rows.data() + row * at(centroids.dim),
                    centroids.values.data() + at(found.lists[row]) * at(centroids.dim), centroids.dim);
  return sum;
}

TEST(kmeans_gets_nearer_and_is_the_same_whatever_the_threads) {
  const Case test{1200, 12, 5, 3};
  const auto rows = test.data();
  const auto start = test.centroids();
  double before = error_of(rows, start);
  for (int iterations : {1, 3, 12}) {
    const Centroids centroids = refine_centroids(rows.data(), test.rows, start, false, iterations, 1);
    CHECK(refine_centroids(rows.data(), test.rows, start, false, iterations, 3).values == centroids.values);
    const double error = error_of(rows, centroids);
    CHECK(error < before);
    before = error;
  }
  const Codebooks books = refine_codebooks(rows.data(), test.rows, test.codebooks(), 1, 1);
  CHECK(refine_codebooks(rows.data(), test.rows, test.codebooks(), 1, 3).values == books.values);
  for (int part = 0; part < test.parts; ++part) {  // each codebook is what k-means of that part alone gives
    std::vector<float> own;
    for (int row = 0; row < test.rows; ++row)
      for (int k = 0; k < test.width; ++k) own.push_back(rows[at(row * test.dim() + part * test.width + k)]);
    auto values = [&](const Codebooks& all) {
      const auto begin = all.values.begin() + part * kEntries * test.width;
      return std::vector<float>(begin, begin + kEntries * test.width);
    };
    const Centroids alone = refine_centroids(
        own.data(), test.rows, {kEntries, test.width, Metric::kL2, values(test.codebooks())}, false, 1, 1);
    const auto book = values(books);
    for (std::size_t i = 0; i < book.size(); ++i) CHECK(std::abs(book[i] - alone.values[i]) < 1e-3f);
  }
}

TEST(kmeans_gives_empty_lists_rows_and_keeps_spheres) {
  const Case test{400, 1, 1, 6};
  const auto rows = test.data();
  Centroids start{16, 6, Metric::kL2, {}};
  for (int i = 0; i < 16; ++i)
    start.values.insert(start.values.end(), rows.begin(), rows.begin() + 6);  // all equal
  const Centroids centroids = refine_centroids(rows.data(), test.rows, start, false, 12, 2);
  std::vector<int> sizes(16);
  for (std::int64_t list : run(*make_assigner(centroids, std::nullopt, false), rows, 1).lists)
    ++sizes[at(list)];
  for (int size : sizes) CHECK(size > 0);

  start.metric = Metric::kInnerProduct;
  const Centroids sphere = refine_centroids(rows.data(), test.rows, start, true, 4, 1);
  for (int i = 0; i < 16; ++i) {
    const float* values = sphere.values.data() + i * 6;
    CHECK(std::abs(distance(values, values, 6, Metric::kInnerProduct) + 1) < 1e-5);
  }
}

}  // namespace
}  // namespace fct::testing
