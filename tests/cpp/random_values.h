#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace fct::testing {

// Normal ones around `shift`, the same for the same seed.
inline std::vector<float> random_values(std::int64_t count, unsigned seed, float shift = 0) {
  std::minstd_rand random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random) + shift;
  return values;
}

}  // namespace fct::testing
