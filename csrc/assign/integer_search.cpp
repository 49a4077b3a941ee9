// Every list scored, by products of 16-bit integers. See Note [Integer scores].
#include <numeric>

#include "integer_lists.h"

namespace fct::assign {
namespace {

constexpr int kTileRows = 128;

struct Buffers : ListSearch::Workspace {
  explicit Buffers(IntegerRows tile) : rows(std::move(tile)) {}
  IntegerRows rows;
  Bounds bounds;
};

std::vector<std::int32_t> numbers(int count) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

class IntegerSearch : public ListSearch {
 public:
  IntegerSearch(const Centroids& centroids, const std::optional<Directions>& directions)
      : lists_(centroids, directions), numbers_(numbers(kTileRows)) {
    lists_.place(numbers(centroids.count));
  }

  int tile_rows() const override { return kTileRows; }

  std::unique_ptr<Workspace> make_workspace() const override {
    return std::make_unique<Buffers>(lists_.rows(kTileRows));
  }

  void search(const float* rows, std::int64_t count, Found* found, Workspace& workspace) const override {
    auto& buffers = static_cast<Buffers&>(workspace);
    lists_.fill(buffers.rows, rows, count);
    for (std::int64_t row = 0; row < count; ++row) found[row].clear();
    lists_.meet(buffers.rows, numbers_.data(), static_cast<int>(count), 0, lists_.panels(), found,
                buffers.bounds);
  }

 private:
  IntegerLists lists_;
  std::vector<std::int32_t> numbers_;  // of a tile's rows
};

}  // namespace

std::unique_ptr<ListSearch> make_integer_search(const Centroids& centroids,
                                                const std::optional<Directions>& directions) {
  return std::make_unique<IntegerSearch>(centroids, directions);
}

}  // namespace fct::assign
