#include "bounded.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace fct::testing {
namespace {

constexpr double kFloatUlp = 0x1p-24, kBfloatUlp = 0x1p-8,
                 kHalfUlp = 0x1p-11;   // relative error of one rounding
constexpr double kHalfStep = 0x1p-25;  // likewise, of a subnormal half
constexpr double kGeluError = 2e-6;    // matrix libraries approximate erf

Bounded stored(Bounded element, double ulp) {
  return {element.value, element.error + ulp * (std::abs(element.value) + element.error)};
}

BoundedRow linear(const Linear& layer, const BoundedRow& input, Precision precision) {
  const double ulp = precision == Precision::kBf16 ? kBfloatUlp : 0;
  const double summing = (4 + std::sqrt(static_cast<double>(input.size()))) * kFloatUlp;
  BoundedRow output;
  for (std::size_t o = 0; o < layer.bias.size(); ++o) {
    double sum = layer.bias[o], size = std::abs(sum), error = 0;
    for (std::size_t i = 0; i < input.size(); ++i) {
      const double weight = layer.weight[o * input.size() + i];
      sum += weight * input[i].value;
      size += std::abs(weight * input[i].value);
      error += std::abs(weight) * stored(input[i], ulp).error;  // the weight is rounded as well
    }
    error += summing * (size + error);
    if (layer.activation == Activation::kRelu) sum = std::max(sum, 0.0);
    if (layer.activation == Activation::kGelu) {
      error = 1.13 * error + kGeluError * std::min(1.0, std::abs(sum));  // 1.13: the steepest slope of GELU
      sum = 0.5 * sum * (1 + std::erf(sum / std::sqrt(2)));
    }
    output.push_back({sum, error});
  }
  return output;
}

BoundedRow normalized(const BoundedRow& input) {
  double squares = 0, error_squares = 0;
  for (const Bounded& element : input) {
    squares += element.value * element.value;
    error_squares += element.error * element.error;
  }
  const double norm = std::max(std::sqrt(squares), 1e-12), norm_error = std::sqrt(error_squares);
  const double least_norm = std::max(norm - norm_error, 1e-12);
  BoundedRow output;
  for (const Bounded& element : input) {
    const double value = element.value / norm;
    output.push_back({value, std::min(2.0, (element.error + std::abs(value) * norm_error) / least_norm)});
  }
  return output;
}

}  // namespace

BoundedRow evaluate(const Program& program, Precision precision, const Rows& old, const Rows& side,
                    std::int64_t row) {
  // Any value may be kept in the short format, also on its way into a sum or a norm.
  const double ulp = precision == Precision::kBf16 ? kBfloatUlp : kFloatUlp;
  std::vector<BoundedRow> values(program.widths.size());
  auto at = [&](ValueId value) -> BoundedRow& { return values[static_cast<std::size_t>(value)]; };
  auto load = [&](ValueId value, const Rows& rows) {
    for (int column = 0; column < rows.width(); ++column)
      at(value).push_back(stored({rows.at(row, column)}, ulp));
  };
  load(program.old, old);
  if (program.has_side()) load(program.side, side);
  for (const Step& step : program.steps) {
    BoundedRow output;
    if (const auto* layer = std::get_if<Linear>(&step)) {
      output = linear(*layer, at(layer->input), precision);
    } else if (const auto* concat = std::get_if<Concat>(&step)) {
      for (ValueId input : concat->inputs) output.insert(output.end(), at(input).begin(), at(input).end());
    } else if (const auto* add = std::get_if<Add>(&step)) {
      for (std::size_t i = 0; i < at(add->left).size(); ++i) {
        const Bounded &left = at(add->left)[i], &right = at(add->right)[i];
        output.push_back({left.value + right.value, left.error + right.error});
      }
    } else {
      output = normalized(at(std::get<Normalize>(step).input));
    }
    for (Bounded& element : output) element = stored(element, ulp);
    at(output_of(step)) = std::move(output);
  }
  return at(program.output);
}

void check_row(const BoundedRow& expected, const Rows& out, std::int64_t row, const Program& program) {
  for (int column = 0; column < out.width(); ++column) {
    Bounded wanted = expected[static_cast<std::size_t>(column)];
    if (out.dtype() == DType::kFloat16)
      wanted.error += kHalfUlp * (std::abs(wanted.value) + wanted.error) + kHalfStep;
    const double got = out.at(row, column);
    CHECK(std::abs(got - wanted.value) <= wanted.error + 1e-37,
          "row " + std::to_string(row) + " column " + std::to_string(column) + ": got " +
              std::to_string(got) + ", wanted " + std::to_string(wanted.value) + " +- " +
              std::to_string(wanted.error) + " in " + describe(program));
  }
}

}  // namespace fct::testing
