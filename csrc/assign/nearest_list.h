#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/linear_op.h"
#include "fct/assign.h"

namespace fct::assign {

// The nearest centroid for tiles of rows. See Note [Nearest list].
class NearestList {
 public:
  static constexpr int kTileRows = 128;

  // A list that may be the nearest one, and the most its score can be.
  struct Candidate {
    std::int64_t list;
    float high;
  };

  // Buffers of one thread.
  class Workspace {
   public:
    explicit Workspace(const NearestList& lists);

   private:
    friend class NearestList;
    struct Row {
      float error;  // of a score, for a centroid of length 1
      float floor;  // what the best score is at least
      std::vector<Candidate> candidates;
    };
    struct Free {
      void operator()(char* pointer) const { std::free(pointer); }
    };
    std::vector<float> shifted_, scores_;
    std::vector<std::uint16_t> rounded_;
    std::vector<Row> rows_;
    std::unique_ptr<char, Free> scratch_;
  };

  NearestList(Centroids centroids, bool reduced, const cpu::LinearLibrary& library);

  int dim() const { return centroids_.dim; }
  const float* centroids() const { return centroids_.values.data(); }

  // rows is (count, dim), all finite, count at most kTileRows.
  void assign(const float* rows, std::int64_t count, std::int64_t* lists, Workspace& workspace) const;

 private:
  void shift(const float* rows, std::int64_t count, Workspace& workspace) const;
  void score(std::size_t chunk, std::int64_t count, Workspace& workspace) const;
  std::int64_t settle(const float* row, const Workspace::Row& found) const;

  Centroids centroids_;
  bool reduced_;
  std::vector<float> mean_;     // of the centroids
  std::vector<float> lengths_;  // of the centroids less the mean, not too short
  float longest_ = 0;           // of lengths_
  float row_error_,
      own_error_ = 0;  // of a score for a centroid of length 1: by length of the row, and always
  std::vector<std::unique_ptr<cpu::LinearOp>> products_;  // one for each chunk of lists
  std::size_t scratch_bytes_ = 64;
};

}  // namespace fct::assign
