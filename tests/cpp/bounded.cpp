#include "bounded.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace fct::testing {
namespace {

constexpr double kFloatUlp = 0x1p-24, kTf32Ulp = 0x1p-11, kHalfUlp = 0x1p-11, kBfloatUlp = 0x1p-8,
                 kFloat8Ulp = 0x1p-4;             // relative error of one rounding
constexpr double kHalfStep = 0x1p-25;             // absolute error of rounding a subnormal half
constexpr double kFloat8Step = 0x1p-10 / 112;     // likewise of a float8, by the range that sets its scale
constexpr double kInt8Step = 1.25 * 0.505 / 127;  // likewise of a signed integer
constexpr double kLeastWeight = 64;               // steps of a row's weights, where CPUs have no more
constexpr double kGeluError = 2e-6;               // matrix libraries approximate erf

// How storing a number can change it.
struct Rounding {
  double ulp = 0, step = 0;

  Bounded of(Bounded element) const {
    return {element.value, element.error + ulp * (std::abs(element.value) + element.error) + step};
  }
};

double ulp_of(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return 0;
    case Precision::kTf32:
      return kTf32Ulp;
    case Precision::kFp16:
      return kHalfUlp;
    case Precision::kBf16:
      return kBfloatUlp;
    case Precision::kInt8:
      return kFloatUlp;
    default:
      return kFloat8Ulp;
  }
}

// Any value may be kept in the short format, also on its way into a sum or a norm.
Rounding storing(Precision precision, const Ranges& ranges) {
  Rounding rounding{std::max(ulp_of(precision), kFloatUlp), precision == Precision::kFp16 ? kHalfStep : 0};
  if (needs_ranges(precision))
    for (const auto& [value, range] : ranges)  // parts of a concat take the largest range among them
      rounding.step = std::max(rounding.step, (precision == Precision::kFp8 ? kFloat8Step : kInt8Step) *
                                                  static_cast<double>(range));
  return rounding;
}

BoundedRow linear(const Linear& layer, const BoundedRow& input, Precision precision) {
  const Rounding weights{ulp_of(precision)};
  const double summing = (4 + std::sqrt(static_cast<double>(input.size()))) * kFloatUlp;
  BoundedRow output;
  for (std::size_t o = 0; o < layer.bias.size(); ++o) {
    double sum = layer.bias[o], size = std::abs(sum), error = 0, largest = 0;
    for (std::size_t i = 0; i < input.size(); ++i)
      largest = std::max(largest, std::abs(static_cast<double>(layer.weight[o * input.size() + i])));
    const double step = precision == Precision::kInt8 ? 0.505 * largest / kLeastWeight : 0;
    for (std::size_t i = 0; i < input.size(); ++i) {
      const double weight = layer.weight[o * input.size() + i];
      sum += weight * input[i].value;
      size += std::abs(weight * input[i].value);
      error += std::abs(weight) * weights.of(input[i]).error;  // the weight is rounded as well
      error += step * (std::abs(input[i].value) + input[i].error);
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

std::vector<BoundedRow> evaluate_all(const Program& program, Precision precision, const Rows& old,
                                     const Rows& side, std::int64_t row, const Ranges& ranges) {
  const Rounding rounding = storing(precision, ranges);
  std::vector<BoundedRow> values(program.widths.size());
  auto at = [&](ValueId value) -> BoundedRow& { return values[static_cast<std::size_t>(value)]; };
  auto load = [&](ValueId value, const Rows& rows) {
    for (int column = 0; column < rows.width(); ++column)
      at(value).push_back(rounding.of({rows.at(row, column)}));
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
    for (Bounded& element : output) element = rounding.of(element);
    at(output_of(step)) = std::move(output);
  }
  return values;
}

}  // namespace

BoundedRow evaluate(const Program& program, Precision precision, const Rows& old, const Rows& side,
                    std::int64_t row, const Ranges& ranges) {
  return evaluate_all(program, precision, old, side, row, ranges)[static_cast<std::size_t>(program.output)];
}

Ranges measured_ranges(const Program& program, const Rows& old, const Rows& side, std::int64_t rows) {
  Ranges ranges;
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto values = evaluate_all(program, Precision::kFp32, old, side, row, {});
    for (std::size_t value = 0; value < values.size(); ++value)
      for (const Bounded& element : values[value]) {
        float& range = ranges[static_cast<ValueId>(value)];
        range = std::max(range, static_cast<float>(std::abs(element.value)));
      }
  }
  return ranges;
}

Ranges roomy_ranges(Random& random, const Program& program) {
  constexpr int kRows = 50;
  const Rows old = Rows::normal(random, DType::kFloat32, kRows, program.width(program.old));
  const Rows side =
      Rows::normal(random, DType::kFloat32, kRows, program.has_side() ? program.width(program.side) : 0);
  Ranges ranges = measured_ranges(program, old, side, kRows);
  for (auto& [value, range] : ranges) range = 2.5f * range + 1;
  return ranges;
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
