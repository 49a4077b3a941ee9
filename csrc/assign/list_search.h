// Which lists may be the nearest one of a row: the first half of Note [Nearest list].
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/linear_op.h"
#include "fct/assign.h"

namespace fct::assign {

// A list that may be the nearest one, and the most its score can be.
struct Candidate {
  std::int64_t list;
  float high;
};

// What is known of a row.
struct Found {
  float floor;                        // what the best score is at least
  std::vector<Candidate> candidates;  // those with a lower high are none any more

  void clear() {
    floor = -std::numeric_limits<float>::infinity();
    candidates.clear();
  }
};

class ListSearch {
 public:
  // Buffers of one thread.
  class Workspace {
   public:
    virtual ~Workspace() = default;
  };

  virtual ~ListSearch() = default;
  virtual int tile_rows() const = 0;  // searched at once, at most
  virtual std::unique_ptr<Workspace> make_workspace() const = 0;
  // rows is (count, dim), all finite, count at most tile_rows(). Fills found (count).
  virtual void search(const float* rows, std::int64_t count, Found* found, Workspace& workspace) const = 0;
};

std::unique_ptr<ListSearch> make_bfloat_search(const Centroids& centroids, const cpu::LinearLibrary& library);
std::unique_ptr<ListSearch> make_integer_search(const Centroids& centroids,
                                                const std::optional<Directions>& directions = std::nullopt);
std::unique_ptr<ListSearch> make_two_level_search(const Centroids& centroids, const Groups& groups);

}  // namespace fct::assign
