// Note [Two levels]
// Centroids are put into groups, each to its nearest group center. A row is scored for all centers, then for
// the centroids of the best so many groups; what follows is as with all lists. The list found is the nearest
// one of those groups: not always of all, so who wants it says how many groups are enough (group_ranks).
// Which groups are the best depends on the row alone, the lowest number first among equals, and how they are
// gone through does not matter: rows of a tile that share a group meet its centroids together.
#include <algorithm>
#include <numeric>

#include "integer_lists.h"

namespace fct::assign {
namespace {

constexpr int kTileRows = 1024;  // so that some of them share a group

struct Buffers : ListSearch::Workspace {
  Buffers(IntegerRows tile, int groups, int probes)
      : rows(std::move(tile)),
        chosen(static_cast<std::size_t>(kTileRows) * static_cast<std::size_t>(probes)),
        members(chosen.size()),
        ends(static_cast<std::size_t>(groups) + 1) {}
  IntegerRows rows;
  Bounds bounds;
  std::vector<std::pair<float, std::int32_t>> best;  // scores of groups, negated
  std::vector<std::int32_t> chosen;                  // (rows, probes) groups
  std::vector<std::int32_t> members, ends;           // rows by group; where a group's end
};

class TwoLevelSearch : public ListSearch {
 public:
  TwoLevelSearch(const Centroids& centroids, const Groups& groups);

  int tile_rows() const override { return kTileRows; }
  std::unique_ptr<Workspace> make_workspace() const override {
    return std::make_unique<Buffers>(lists_.rows(kTileRows), groups_, probes_);
  }
  void search(const float* rows, std::int64_t count, Found* found, Workspace& workspace) const override;

 private:
  void choose(int row, Buffers& buffers, std::int32_t* chosen) const;
  IntegerLists lists_;
  int groups_, probes_;
  Panels centers_;
  std::vector<std::int32_t> firsts_;   // the first panel of each group, and of the one after the last
  std::vector<std::int32_t> numbers_;  // of a tile's rows
};

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// The group of each centroid.
std::vector<std::int64_t> groups_of(const Centroids& centroids, const Groups& groups) {
  std::vector<std::int64_t> found(at(centroids.count));
  const Centroids centers{groups.count, centroids.dim, Metric::kL2, groups.centers};
  make_assigner(centers, std::nullopt, false)
      ->assign(centroids.values.data(), centroids.count, 1, found.data(), nullptr);
  return found;
}

TwoLevelSearch::TwoLevelSearch(const Centroids& centroids, const Groups& groups)
    : lists_(centroids, std::nullopt),
      groups_(groups.count),
      probes_(groups.probes),
      centers_(panels_for(groups.count), centroids.dim),
      numbers_(at(kTileRows)) {
  std::iota(numbers_.begin(), numbers_.end(), 0);
  std::vector<float> shifted(at(centroids.dim));
  for (std::size_t group = 0; group < at(groups_); ++group) {
    const auto scored =
        lists_.centroids().score(groups.centers.data() + group * shifted.size(), shifted.data());
    centers_.put(group, shifted.data(), scored.length / kIntegerLength, scored.bias, 0);
  }
  std::vector<std::vector<std::int32_t>> members(at(groups_));
  const auto group_of = groups_of(centroids, groups);
  for (std::size_t list = 0; list < group_of.size(); ++list)
    members[at(group_of[list])].push_back(static_cast<std::int32_t>(list));
  std::vector<std::int32_t> places;
  firsts_.push_back(0);
  for (const auto& group : members) {
    places.insert(places.end(), group.begin(), group.end());
    firsts_.push_back(firsts_.back() + panels_for(static_cast<int>(group.size())));
    places.resize(at(firsts_.back()) * kPanel, IntegerLists::kNone);
  }
  lists_.place(std::move(places));
}

void TwoLevelSearch::search(const float* rows, std::int64_t count, Found* found, Workspace& workspace) const {
  auto& buffers = static_cast<Buffers&>(workspace);
  lists_.fill(buffers.rows, rows, count);
  for (std::int64_t row = 0; row < count; ++row) found[row].clear();
  for (int start = 0; start < count; start += kBatch) {
    const int here = std::min(kBatch, static_cast<int>(count) - start);
    score(centers_, 0, centers_.count, buffers.rows.batch(numbers_.data() + start, here, false),
          buffers.bounds);
    for (int row = 0; row < here; ++row)
      choose(row, buffers, buffers.chosen.data() + at(start + row) * at(probes_));
  }
  // Rows by group: counted, then each put before the end of its group.
  std::fill(buffers.ends.begin(), buffers.ends.end(), 0);
  const std::size_t meetings = at(count) * at(probes_);
  for (std::size_t i = 0; i < meetings; ++i) ++buffers.ends[at(buffers.chosen[i])];
  std::partial_sum(buffers.ends.begin(), buffers.ends.end(), buffers.ends.begin());
  for (std::size_t i = meetings; i-- > 0;)
    buffers.members[at(--buffers.ends[at(buffers.chosen[i])])] = static_cast<std::int32_t>(i / at(probes_));
  for (std::size_t group = 0; group < at(groups_); ++group) {
    const int begin = buffers.ends[group], members = buffers.ends[group + 1] - begin;
    lists_.meet(buffers.rows, buffers.members.data() + begin, members, firsts_[group], firsts_[group + 1],
                found, buffers.bounds);
  }
}

// The groups of the highest scores, in no order.
void TwoLevelSearch::choose(int row, Buffers& buffers, std::int32_t* chosen) const {
  // So many panels hold at least one score each that is no lower than this, so none below is needed.
  float highest[kPanelsAtOnce];
  for (int panel = 0; panel < centers_.count; ++panel)
    highest[panel] = largest(buffers.bounds.highs[panel][row]);
  float least = -std::numeric_limits<float>::infinity();
  if (probes_ <= centers_.count) {
    std::nth_element(highest, highest + probes_ - 1, highest + centers_.count, std::greater<>());
    least = highest[probes_ - 1];
  }
  buffers.best.clear();
  for (int group = 0; group < groups_; ++group) {
    const float score = buffers.bounds.highs[group / kPanel][row][group % kPanel];
    if (score >= least) buffers.best.emplace_back(-score, group);
  }
  std::nth_element(buffers.best.begin(), buffers.best.begin() + probes_ - 1, buffers.best.end());
  for (int probe = 0; probe < probes_; ++probe) chosen[probe] = buffers.best[at(probe)].second;
}

}  // namespace

std::unique_ptr<ListSearch> make_two_level_search(const Centroids& centroids, const Groups& groups) {
  return std::make_unique<TwoLevelSearch>(centroids, groups);
}

}  // namespace fct::assign
