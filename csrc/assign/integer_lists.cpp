#include "integer_lists.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "distances.h"

namespace fct::assign {
namespace {

constexpr int kNoPlace = -1;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

std::optional<Projection> projection_of(const std::optional<Directions>& directions) {
  return directions ? std::optional<Projection>(*directions) : std::nullopt;
}

}  // namespace

IntegerLists::IntegerLists(const Centroids& centroids, const std::optional<Directions>& directions)
    : projection_(projection_of(directions)),
      errors_(projection_ ? projection_->parts() : centroids.dim, projection()),
      centroids_(centroids, errors_.rounding()) {}

void IntegerLists::place(std::vector<std::int32_t> lists) {
  lists.resize(at(panels_for(static_cast<int>(lists.size()))) * kPanel, kNone);
  lists_ = std::move(lists);
  panels_ = Panels(static_cast<int>(lists_.size()) / kPanel, scored_dim());
  std::vector<float> projected(at(scored_dim()));
  for (std::size_t place = 0; place < lists_.size(); ++place) {
    if (lists_[place] == kNone) continue;
    const std::size_t list = at(lists_[place]), width = at(centroids_.dim);
    const float* values = centroids_.values.data() + list * width;
    Projection::Lengths length{centroids_.lengths[list], 0};
    if (projection_) {
      projection_->apply(values, 1, projected.data());
      values = projected.data();
      length = projection_->lengths(centroids_.lengths[list], values);
    }
    // As in lengths: what is so short that its products may vanish keeps the error of what is not.
    const float scale = std::max(length.along, ShiftedCentroids::kShortest) / kIntegerLength;
    panels_.put(place, values, scale,
                centroids_.biases[list] + centroids_.own_error(centroids_.lengths[list]),
                errors_.of_list(centroids_.lengths[list], length.rest));
  }
}

void IntegerLists::meet(const IntegerRows& rows, const std::int32_t* chosen, int count, int first, int last,
                        Found* found, Bounds& bounds) const {
  for (int start = 0; start < count; start += kBatch)
    meet_batch(rows, chosen + start, std::min(kBatch, count - start), first, last, found, bounds);
}

void IntegerLists::meet_batch(const IntegerRows& rows, const std::int32_t* chosen, int count, int first,
                              int last, Found* found, Bounds& bounds) const {
  Hit hits[kPanelsAtOnce * kBatch + 1];
  float floors[kBatch];
  int tops[kBatch];
  const Batch batch = rows.batch(chosen, count, true);
  for (int panel = first; panel < last; panel += kPanelsAtOnce) {
    const int scored = std::min(kPanelsAtOnce, last - panel);
    score(panels_, panel, scored, batch, bounds);
    // The list of the highest bound comes first: few of the others can be better than that.
    for (int row = 0; row < count; ++row) {
      Found& of_row = found[chosen[row]];
      const float top = largest(bounds.tops[row]);
      tops[row] = kNoPlace;
      // Above -infinity, which is what places without a list have.
      if (top >= of_row.floor && top > -std::numeric_limits<float>::infinity()) {
        tops[row] = place_of(bounds, row, top);
        add(rows, chosen[row], panel * kPanel + tops[row], top, of_row);
      }
      floors[row] = of_row.floor;
    }
    const int reached = reaching(bounds.highs, scored, count, floors, hits);
    for (int hit = 0; hit < reached; ++hit) {
      const int row = hits[hit].row, begin = hits[hit].panel * kPanel;
      Found& of_row = found[chosen[row]];
      for (unsigned columns = hits[hit].columns; columns != 0; columns &= columns - 1) {
        const int column = std::countr_zero(columns), place = begin + column;
        const float high = bounds.highs[hits[hit].panel][row][column];
        if (place != tops[row] && high >= of_row.floor)
          add(rows, chosen[row], panel * kPanel + place, high, of_row);
      }
    }
  }
}

Spans IntegerLists::spans() const {
  const int count = (panels_.count + Spans::kPanels - 1) / Spans::kPanels;
  return {count, AlignedVector<float>(at(count) * kBatch * kPanel), std::vector<Hit>(at(count) * kBatch + 1)};
}

void IntegerLists::meet_all(const IntegerRows& rows, const std::int32_t* chosen, int count, Found* found,
                            Bounds& bounds, Spans& spans) const {
  for (int start = 0; start < count; start += kBatch)
    meet_batch_twice(rows, chosen + start, std::min(kBatch, count - start), found, bounds, spans);
}

void IntegerLists::meet_batch_twice(const IntegerRows& rows, const std::int32_t* chosen, int count,
                                    Found* found, Bounds& bounds, Spans& spans) const {
  auto* tops = reinterpret_cast<float(*)[kBatch][kPanel]>(spans.tops.data());
  const Batch batch = rows.batch(chosen, count, true);
  for (int span = 0, panel = 0; span < spans.count; ++span, panel += Spans::kPanels)
    score_tops(panels_, panel, std::min(Spans::kPanels, panels_.count - panel), batch, tops[span]);
  int best[kBatch];
  float floors[kBatch];
  for (int row = 0; row < count; ++row) {
    best[row] = span_of_top(tops, spans.count, row);
    meet_span(rows, chosen[row], best[row], found[chosen[row]], bounds);
    floors[row] = found[chosen[row]].floor;
  }
  const int reached = reaching(tops, spans.count, count, floors, spans.hits.data());
  for (int hit = 0; hit < reached; ++hit) {
    const auto [span, row, columns] = spans.hits[at(hit)];
    if (span != best[row]) meet_span(rows, chosen[row], span, found[chosen[row]], bounds);
  }
}

// The list of the highest bound comes first, then those that may be better than that.
void IntegerLists::meet_span(const IntegerRows& rows, std::int32_t row, int span, Found& found,
                             Bounds& bounds) const {
  const int first = span * Spans::kPanels, count = std::min(Spans::kPanels, panels_.count - first);
  score(panels_, first, count, rows.batch(&row, 1, true), bounds);
  const float top = largest(bounds.tops[0]);
  if (top < found.floor || top == -std::numeric_limits<float>::infinity()) return;
  const int best = place_of(bounds, 0, top);
  add(rows, row, first * kPanel + best, top, found);
  for (int place = 0; place < count * kPanel; ++place) {
    const float high = bounds.highs[place / kPanel][0][place % kPanel];
    if (place != best && high >= found.floor && lists_[at(first * kPanel + place)] != kNone)
      add(rows, row, first * kPanel + place, high, found);
  }
}

// A score of which parts are left out is computed in full; one of all is known well enough.
void IntegerLists::add(const IntegerRows& rows, std::int32_t row, int place, float high, Found& found) const {
  const std::size_t number = at(row), list = at(lists_[at(place)]), width = at(centroids_.dim);
  const float length = rows.length(number), own_error = centroids_.own_error(centroids_.lengths[list]);
  float slack = rows.error(number) * panels_.lengths[at(place)] + own_error;
  if (projection_) {
    slack = centroids_.float_error_for(length) * centroids_.lengths[list] + own_error;
    high = quick_dot(rows.shifted(number), centroids_.values.data() + list * width, width) +
           centroids_.biases[list] + slack;
  }
  const float low = high - 2 * slack;
  found.candidates.push_back({lists_[at(place)], high});
  found.floor = std::max(found.floor, low - centroids_.settling_error(length, low));
}

}  // namespace fct::assign
