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

#include "assign/distances.h"
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
  const bool is_l2 = shifted.metric == Metric::kL2;
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

  const auto mean_length = static_cast<float>(std::sqrt(assign::squared_length(mean.data(), dim)) * 1.0001);
  const auto additions = static_cast<float>(dim + 8);
  errors.by_length = kTwoTf32Roundings + additions * kSumRounding;
  errors.always = additions * kSumRounding * (is_l2 ? shifted.longest : mean_length) + 1e-18f;
  errors.rounding = additions * kDistanceRounding;
  errors.reach = shifted.longest + (is_l2 ? 0.f : mean_length);
}

}  // namespace fct::cuda
