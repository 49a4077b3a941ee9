// The lists that searches by integers score, and how rows meet some of them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "integer_rows.h"
#include "list_search.h"

namespace fct::assign {

// What is kept of the scores of a batch for all panels: the largest of each column of so many panels.
struct Spans {
  static constexpr int kPanels = 8;
  int count;
  AlignedVector<float> tops;  // (count, kBatch, kPanel)
  std::vector<Hit> hits;      // for one more than all
};

class IntegerLists {
 public:
  static constexpr std::int32_t kNone = -1;

  IntegerLists(const Centroids& centroids, const std::optional<Directions>& directions);

  // Puts lists into panels; kNone keeps a place free.
  void place(std::vector<std::int32_t> lists);

  const ShiftedCentroids& centroids() const { return centroids_; }
  int panels() const { return panels_.count; }
  IntegerRows rows(int most) const { return {most, centroids_.dim, projection()}; }
  void fill(IntegerRows& tile, const float* rows, std::int64_t count) const {
    tile.fill(rows, count, centroids_, errors_);
  }

  // Adds to each of the chosen rows what may be its nearest list among those of panels [first, last); found
  // is of all rows.
  void meet(const IntegerRows& rows, const std::int32_t* chosen, int count, int first, int last, Found* found,
            Bounds& bounds) const;
  // The same of all panels, of which those that matter are scored twice (Note [Leading directions]).
  void meet_all(const IntegerRows& rows, const std::int32_t* chosen, int count, Found* found, Bounds& bounds,
                Spans& spans) const;
  Spans spans() const;

 private:
  const Projection* projection() const { return projection_ ? &*projection_ : nullptr; }
  int scored_dim() const { return projection_ ? projection_->parts() : centroids_.dim; }
  void meet_batch(const IntegerRows& rows, const std::int32_t* chosen, int count, int first, int last,
                  Found* found, Bounds& bounds) const;
  void meet_batch_twice(const IntegerRows& rows, const std::int32_t* chosen, int count, Found* found,
                        Bounds& bounds, Spans& spans) const;
  void meet_span(const IntegerRows& rows, std::int32_t row, int span, Found& found, Bounds& bounds) const;
  void add(const IntegerRows& rows, std::int32_t row, int place, float high, Found& found) const;

  std::optional<Projection> projection_;
  PartErrors errors_;
  ShiftedCentroids centroids_;
  Panels panels_;
  std::vector<std::int32_t> lists_;  // at each place of the panels
};

inline int panels_for(int centroids) { return (centroids + kPanel - 1) / kPanel; }

}  // namespace fct::assign
