// Note [Nearest list, on a device]
// As on the CPU (Note [Nearest list], assign/nearest_list.cpp) scores come first, from matrix products, in
// tf32 here; each is known up to a bound. Lists that may be the nearest one within that bound are then
// compared by the distance itself in float32.
//
// The bound also covers the rounding of that distance: the list found is the one whose distance in float32 is
// least, of all lists. So it depends on nothing but the row: not on which kernel computed the scores, in
// blocks of how many rows, on which device.
#include "list_scores.h"

#include <algorithm>
#include <cmath>

#include "assign/shifted_centroids.h"
#include "layout.h"

namespace fct::cuda {
namespace {

constexpr float kTwoTf32Roundings = 0x1.01p-10f;
constexpr float kSumRounding = 0x1p-22f;       // of each addition: tensor cores may drop bits, not round
constexpr float kDistanceRounding = 0x1p-24f;  // of each addition, as a score: half a squared distance

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

LinearSpec empty_layer(std::int64_t lists, std::int64_t dim) {
  LinearSpec layer;
  layer.d_in = padded_width(dim);
  layer.d_out = padded_width(lists);
  layer.precision = Precision::kTf32;
  layer.weight.assign(at(layer.d_in * layer.d_out), 0);
  layer.bias.assign(at(layer.d_out), 0);
  return layer;
}

}  // namespace

ListScores::ListScores(const Centroids& centroids) {
  const assign::ShiftedCentroids shifted(centroids, kTwoTf32Roundings);
  const std::size_t dim = at(shifted.dim);
  for (std::int64_t list = 0; list < shifted.count; ++list) {
    if (list % kMostChunk == 0)
      layers.push_back(empty_layer(std::min<std::int64_t>(kMostChunk, shifted.count - list), shifted.dim));
    LinearSpec& layer = layers.back();
    std::copy_n(shifted.values.data() + at(list) * dim, dim,
                layer.weight.data() + list % kMostChunk * layer.d_in);
    layer.bias[at(list % kMostChunk)] = shifted.biases[at(list)];
  }
  mean = shifted.mean;
  lengths = shifted.lengths;
  lengths.resize(at(padded_width(shifted.count)), 0);

  const auto additions = static_cast<float>(dim + 8);
  const float sum = additions * kSumRounding, distance = additions * kDistanceRounding;
  errors.by_length = kTwoTf32Roundings + sum;
  errors.always = 1e-18f;
  errors.rounding = distance;
  if (shifted.metric == Metric::kL2) {
    errors.by_centroid = sum;
    errors.reach = shifted.longest;  // no row is farther from its list
  } else {                           // of which the distance is a product, too
    errors.by_length += distance;
    errors.always += (sum + distance) * shifted.mean_length;
    errors.reach = shifted.mean_length;
  }
  if (!shifted.are_safe) errors.reach = INFINITY;
}

}  // namespace fct::cuda
