#include "bounds.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

namespace fct {
namespace {

constexpr double kLargest = FLT_MAX / 4.0;  // room for rounding, to bfloat16 among others
constexpr double kAnything = std::numeric_limits<double>::infinity();

// |value| <= gain * x + constant for inputs of at most x, as long as x <= safe.
struct Bound {
  double gain = 1, constant = 0, safe = kAnything;

  // Nothing is promised of inputs for which the value itself could overflow.
  Bound checked() const {
    const double room = kLargest - constant;
    const double largest = room < 0 ? 0 : gain > 0 ? room / gain : kAnything;
    return {gain, constant, std::min(safe, largest)};
  }
};

Bound of_linear(const Linear& layer, const Bound& in, std::size_t d_in) {
  double weights = 0, bias = 0;
  for (std::size_t unit = 0; unit < layer.bias.size(); ++unit) {
    double sum = 0;
    for (std::size_t i = 0; i < d_in; ++i)
      sum += std::abs(static_cast<double>(layer.weight[unit * d_in + i]));
    weights = std::max(weights, sum);
    bias = std::max(bias, std::abs(static_cast<double>(layer.bias[unit])));
  }
  return Bound{weights * in.gain, weights * in.constant + bias, in.safe}.checked();
}

}  // namespace

float largest_safe_input(const Program& program, bool everywhere) {
  std::vector<Bound> bounds(program.widths.size());
  auto of = [&](ValueId value) -> Bound& { return bounds[static_cast<std::size_t>(value)]; };
  double safe = kAnything;
  for (const Step& step : program.steps) {
    if (const auto* linear = std::get_if<Linear>(&step)) {
      of(linear->output) =
          of_linear(*linear, of(linear->input), static_cast<std::size_t>(program.width(linear->input)));
      if (linear->activation != Activation::kNone) safe = std::min(safe, of(linear->output).safe);
    } else if (const auto* concat = std::get_if<Concat>(&step)) {
      Bound all{0, 0, kAnything};
      for (ValueId input : concat->inputs)
        all = {std::max(all.gain, of(input).gain), std::max(all.constant, of(input).constant),
               std::min(all.safe, of(input).safe)};
      of(concat->output) = all;
    } else if (const auto* sum = std::get_if<Add>(&step)) {
      const Bound &left = of(sum->left), &right = of(sum->right);
      of(sum->output) =
          Bound{left.gain + right.gain, left.constant + right.constant, std::min(left.safe, right.safe)}
              .checked();
    } else {
      const auto& norm = std::get<Normalize>(step);
      of(norm.output) = {0, 1, of(norm.input).safe};
    }
    if (everywhere) safe = std::min(safe, of(output_of(step)).safe);
  }
  if (safe >= FLT_MAX) return FLT_MAX;
  return std::nextafter(static_cast<float>(safe), 0.0f);
}

}  // namespace fct
