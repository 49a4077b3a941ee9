#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fct/assign.h"
#include "list_search.h"

namespace fct::assign {

// The nearest centroid for tiles of rows. See Note [Nearest list].
class NearestList {
 public:
  // Buffers of one thread.
  struct Workspace {
    explicit Workspace(const NearestList& lists);
    std::vector<Found> found;
    std::unique_ptr<ListSearch::Workspace> search;
  };

  NearestList(Centroids centroids, std::unique_ptr<ListSearch> search)
      : centroids_(std::move(centroids)), search_(std::move(search)) {}

  int dim() const { return centroids_.dim; }
  const float* centroids() const { return centroids_.values.data(); }
  int tile_rows() const { return search_->tile_rows(); }

  // rows is (count, dim), all finite, count at most tile_rows().
  void assign(const float* rows, std::int64_t count, std::int64_t* lists, Workspace& workspace) const;

 private:
  std::int64_t settle(const float* row, const Found& found) const;

  Centroids centroids_;
  std::unique_ptr<ListSearch> search_;
};

}  // namespace fct::assign
