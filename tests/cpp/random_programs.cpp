#include "random_programs.h"

#include "cpu/convert.h"
#include "rounding.h"

namespace fct::testing {

int uniform(Random& random, int low, int high) { return std::uniform_int_distribution(low, high)(random); }

Linear random_linear(Random& random, ValueId input, ValueId output, int d_in, int d_out,
                     Activation activation) {
  std::normal_distribution<float> weights(0.f, std::sqrt(2.f / static_cast<float>(d_in))), biases(0.f, 0.1f);
  Linear layer{input, output, {}, {}, activation};
  for (int i = 0; i < d_in * d_out; ++i) layer.weight.push_back(weights(random));
  for (int i = 0; i < d_out; ++i) layer.bias.push_back(biases(random));
  return layer;
}

ValueId ProgramBuilder::value(int width) {
  program_.widths.push_back(width);
  return static_cast<ValueId>(program_.widths.size()) - 1;
}

ValueId ProgramBuilder::linear(ValueId input, int width, Activation activation) {
  const ValueId output = value(width);
  program_.steps.push_back(random_linear(random_, input, output, program_.width(input), width, activation));
  return output;
}

ValueId ProgramBuilder::concat(std::vector<ValueId> inputs) {
  int width = 0;
  for (ValueId input : inputs) width += program_.width(input);
  const ValueId output = value(width);
  program_.steps.push_back(Concat{std::move(inputs), output});
  return output;
}

ValueId ProgramBuilder::add(ValueId left, ValueId right) {
  const ValueId output = value(program_.width(left));
  program_.steps.push_back(Add{left, right, output});
  return output;
}

ValueId ProgramBuilder::normalize(ValueId input) {
  const ValueId output = value(program_.width(input));
  program_.steps.push_back(Normalize{input, output});
  return output;
}

Program ProgramBuilder::finish(ValueId old, ValueId side, ValueId output) {
  program_.old = old;
  program_.side = side;
  program_.output = output;
  return program_;
}

Program random_program(Random& random, int max_width) {
  ProgramBuilder builder(random);
  std::vector<ValueId> known;
  auto any = [&] {
    return known[static_cast<std::size_t>(uniform(random, 0, static_cast<int>(known.size()) - 1))];
  };
  const ValueId old = builder.value(uniform(random, 1, max_width));
  known.push_back(old);
  const ValueId side = uniform(random, 0, 1) == 0 ? -1 : builder.value(uniform(random, 1, max_width));
  if (side >= 0) known.push_back(side);
  const auto inputs = known.size();
  const int steps = uniform(random, 1, 8);
  while (known.size() < inputs + static_cast<std::size_t>(steps)) {
    const ValueId input = any();
    switch (uniform(random, 0, 5)) {
      case 0: {
        std::vector<ValueId> parts{input};
        for (int i = uniform(random, 0, 2); i > 0; --i) parts.push_back(any());
        known.push_back(builder.concat(parts));
        break;
      }
      case 1: {
        std::vector<ValueId> fitting;
        for (ValueId other : known)
          if (builder.program().width(other) == builder.program().width(input)) fitting.push_back(other);
        known.push_back(builder.add(
            input,
            fitting[static_cast<std::size_t>(uniform(random, 0, static_cast<int>(fitting.size()) - 1))]));
        break;
      }
      case 2:
        known.push_back(builder.normalize(input));
        break;
      default: {
        const int width =
            uniform(random, 0, 2) == 0 ? builder.program().width(any()) : uniform(random, 1, max_width);
        known.push_back(builder.linear(input, width, static_cast<Activation>(uniform(random, 0, 2))));
      }
    }
  }
  // Usually the last value; now and then one that later steps read, or that makes them superfluous.
  const auto first_output = static_cast<int>(inputs), last = static_cast<int>(known.size()) - 1;
  const int output = uniform(random, 0, 4) == 0 ? uniform(random, first_output, last) : last;
  return builder.finish(old, side, known[static_cast<std::size_t>(output)]);
}

Program paper_program(Random& random, int old_dim, int side_dim, int new_dim, int inner) {
  ProgramBuilder builder(random);
  const ValueId old = builder.value(old_dim), side = builder.value(side_dim);
  const auto relu = Activation::kRelu;
  const ValueId first = builder.linear(builder.linear(old, 2 * old_dim, relu), 2 * new_dim, relu);
  const ValueId second = builder.linear(builder.linear(side, 2 * side_dim, relu), 2 * new_dim, relu);
  const ValueId mixed =
      builder.linear(builder.linear(builder.concat({first, second}), inner, relu), inner, relu);
  return builder.finish(old, side, builder.linear(mixed, new_dim));
}

Program mlp_program(Random& random, int old_dim, int side_dim, int new_dim, int hidden) {
  ProgramBuilder builder(random);
  const ValueId old = builder.value(old_dim), side = builder.value(side_dim);
  const ValueId mixed = builder.linear(builder.concat({old, side}), hidden, Activation::kGelu);
  return builder.finish(old, side, builder.linear(mixed, new_dim));
}

std::string describe(const Program& program) {
  std::string text = "old " + std::to_string(program.width(program.old));
  if (program.has_side()) text += ", side " + std::to_string(program.width(program.side));
  constexpr const char* kNames[] = {"linear", "concat", "add", "normalize"};
  for (const Step& step : program.steps) {
    text += std::string("; ") + kNames[step.index()];
    for (ValueId input : inputs_of(step)) text += " v" + std::to_string(input);
    text += " -> v" + std::to_string(output_of(step)) + " (" +
            std::to_string(program.width(output_of(step))) + ")";
  }
  return text + "; output v" + std::to_string(program.output);
}

Rows::Rows(DType dtype, std::int64_t rows, int width)
    : dtype_(dtype),
      width_(width),
      bytes_(static_cast<std::size_t>(rows) * static_cast<std::size_t>(width) * size_of(dtype)) {}

Rows Rows::normal(Random& random, DType dtype, std::int64_t rows, int width) {
  Rows result(dtype, rows, width);
  std::normal_distribution<float> values;
  for (std::int64_t row = 0; row < rows; ++row)
    for (int column = 0; column < width; ++column) result.set(row, column, values(random));
  return result;
}

double Rows::at(std::int64_t row_index, int column) const {
  const char* from = row(row_index) + static_cast<std::size_t>(column) * size_of(dtype_);
  if (dtype_ == DType::kFloat32) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return value_of_half(bits);
}

void Rows::set(std::int64_t row_index, int column, double value) {
  const auto exact = static_cast<float>(value);
  cpu::convert(&exact, DType::kFloat32, row(row_index) + static_cast<std::size_t>(column) * size_of(dtype_),
               dtype_, 1);
}

}  // namespace fct::testing
