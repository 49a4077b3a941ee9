// Loops over rows and scores. All vectorised; a result depends on the values only.
#pragma once

#include <cstddef>

namespace fct::assign {

double precise_dot(const float* left, const float* right, std::size_t count);
double squared_length(const float* values, std::size_t count);
float squared_distance(const float* left, const float* right, std::size_t count);
float dot(const float* left, const float* right, std::size_t count);
// The same but for rounding, which differs between CPUs.
float quick_dot(const float* left, const float* right, std::size_t count);
void subtract(const float* left, const float* right, float* out, std::size_t count);

// Scores known up to (error + own_rounding * lengths[i]) * lengths[i]: raises `floor` to the largest of what
// they are at least, and returns the largest of what they are at most. NaN is passed over.
float bounds_of(const float* scores, const float* lengths, float error, float own_rounding, std::size_t count,
                float& floor);

}  // namespace fct::assign
