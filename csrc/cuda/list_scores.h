// Centroids as a device scores them: made on the host, once.
#pragma once

#include <cstdint>
#include <vector>

#include "assignment.h"
#include "device.h"

namespace fct::cuda {

constexpr std::int64_t kMostChunk = 16384;  // lists scored at once

struct ListScores {
  std::vector<float> mean;     // of the centroids
  std::vector<float> lengths;  // of the centroids less the mean, not too short; padded with zeros
  ScoreErrors errors;
  std::vector<LinearSpec> layers;  // one for each chunk of lists; where rows and scores lie is not in them

  explicit ListScores(const Centroids& centroids);
};

}  // namespace fct::cuda
