#include "fct/program.h"

#include <cmath>
#include <set>
#include <string>

#include "fct/error.h"

namespace fct {
namespace {

[[noreturn]] void fail(std::size_t step, const std::string& what) {
  throw Error(ErrorKind::kArtifact, "step " + std::to_string(step) + ": " + what);
}

std::int64_t width_of_output(const Program& program, const Step& step, std::size_t index) {
  if (const auto* linear = std::get_if<Linear>(&step)) {
    const auto expected = static_cast<std::size_t>(program.width(linear->input)) *
                          static_cast<std::size_t>(program.width(linear->output));
    if (linear->weight.size() != expected) fail(index, "weight does not fit its input and output");
    if (linear->bias.size() != static_cast<std::size_t>(program.width(linear->output)))
      fail(index, "bias does not fit the output");
    return program.width(linear->output);
  }
  if (const auto* concat = std::get_if<Concat>(&step)) {
    std::int64_t sum = 0;
    for (ValueId input : concat->inputs) sum += program.width(input);
    return sum;
  }
  if (const auto* add = std::get_if<Add>(&step)) {
    if (program.width(add->left) != program.width(add->right)) fail(index, "adds values of different widths");
    return program.width(add->left);
  }
  return program.width(std::get<Normalize>(step).input);
}

}  // namespace

std::vector<ValueId> inputs_of(const Step& step) {
  if (const auto* linear = std::get_if<Linear>(&step)) return {linear->input};
  if (const auto* concat = std::get_if<Concat>(&step)) return concat->inputs;
  if (const auto* add = std::get_if<Add>(&step)) return {add->left, add->right};
  return {std::get<Normalize>(step).input};
}

ValueId output_of(const Step& step) {
  return std::visit([](const auto& typed) { return typed.output; }, step);
}

std::vector<ValueId> linear_inputs(const Program& program) {
  std::set<ValueId> inputs;
  for (const Step& step : program.steps)
    if (const auto* linear = std::get_if<Linear>(&step)) inputs.insert(linear->input);
  return {inputs.begin(), inputs.end()};
}

void validate(const Program& program) {
  const auto count = static_cast<ValueId>(program.widths.size());
  std::vector<bool> known(program.widths.size(), false);
  auto in_range = [&](ValueId value) { return value >= 0 && value < count; };
  for (int width : program.widths)
    if (width < 1) throw Error(ErrorKind::kArtifact, "a value is less than 1 wide");
  if (!in_range(program.old)) throw Error(ErrorKind::kArtifact, "the program has no input");
  known[static_cast<std::size_t>(program.old)] = true;
  if (program.has_side()) {
    if (!in_range(program.side)) throw Error(ErrorKind::kArtifact, "the second input does not exist");
    known[static_cast<std::size_t>(program.side)] = true;
  }
  for (std::size_t index = 0; index < program.steps.size(); ++index) {
    const Step& step = program.steps[index];
    const auto inputs = inputs_of(step);
    if (inputs.empty()) fail(index, "reads nothing");
    for (ValueId input : inputs)
      if (!in_range(input) || !known[static_cast<std::size_t>(input)])
        fail(index, "reads a value that nothing before it produces");
    const ValueId output = output_of(step);
    if (!in_range(output) || known[static_cast<std::size_t>(output)])
      fail(index, "writes a value a second time");
    if (program.width(output) != width_of_output(program, step, index))
      fail(index, "output has the wrong width");
    known[static_cast<std::size_t>(output)] = true;
  }
  if (!in_range(program.output) || !known[static_cast<std::size_t>(program.output)] ||
      program.output == program.old || program.output == program.side)
    throw Error(ErrorKind::kArtifact, "no step produces the output");
}

}  // namespace fct
