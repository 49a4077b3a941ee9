// Every list scored, by products of 16-bit integers. See Note [Integer scores].
#include <numeric>

#include "integer_lists.h"

namespace fct::assign {
namespace {

constexpr int kTileRows = 128;
constexpr int kHeldPanels = 2 * kPanelsAtOnce;  // up to so many, what is met once is met sooner

struct Buffers : ListSearch::Workspace {
  Buffers(IntegerRows tile, Spans of_lists) : rows(std::move(tile)), spans(std::move(of_lists)) {}
  IntegerRows rows;
  Bounds bounds;
  Spans spans;
};

std::vector<std::int32_t> numbers(int count) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

class IntegerSearch : public ListSearch {
 public:
  IntegerSearch(const Centroids& centroids, const std::optional<Directions>& directions)
      : lists_(centroids, directions),
        are_met_twice_(directions && panels_for(centroids.count) > kHeldPanels),
        numbers_(numbers(kTileRows)) {
    lists_.place(numbers(centroids.count));
  }

  int tile_rows() const override { return kTileRows; }

  std::unique_ptr<Workspace> make_workspace() const override {
    return std::make_unique<Buffers>(lists_.rows(kTileRows), lists_.spans());
  }

  void search(const float* rows, std::int64_t count, Found* found, Workspace& workspace) const override {
    auto& buffers = static_cast<Buffers&>(workspace);
    lists_.fill(buffers.rows, rows, count);
    for (std::int64_t row = 0; row < count; ++row) found[row].clear();
    const int rows_here = static_cast<int>(count);
    if (are_met_twice_)
      lists_.meet_all(buffers.rows, numbers_.data(), rows_here, found, buffers.bounds, buffers.spans);
    else
      lists_.meet(buffers.rows, numbers_.data(), rows_here, 0, lists_.panels(), found, buffers.bounds);
  }

 private:
  IntegerLists lists_;
  bool are_met_twice_;
  std::vector<std::int32_t> numbers_;  // of a tile's rows
};

}  // namespace

std::unique_ptr<ListSearch> make_integer_search(const Centroids& centroids,
                                                const std::optional<Directions>& directions) {
  return std::make_unique<IntegerSearch>(centroids, directions);
}

}  // namespace fct::assign
