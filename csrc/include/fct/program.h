// A transformation as data: steps over numbered values. Python's fct_infer.transformation.Program says the
// same.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace fct {

using ValueId = int;

enum class Activation { kNone, kRelu, kGelu };

struct Linear {
  ValueId input;
  ValueId output;
  std::vector<float> weight;  // (width(output), width(input))
  std::vector<float> bias;    // (width(output))
  Activation activation;
};

struct Concat {
  std::vector<ValueId> inputs;
  ValueId output;
};

struct Add {
  ValueId left;
  ValueId right;
  ValueId output;
};

struct Normalize {
  ValueId input;
  ValueId output;
};

using Step = std::variant<Linear, Concat, Add, Normalize>;

struct Program {
  std::vector<int> widths;  // by ValueId
  ValueId old = 0;
  ValueId side = -1;  // -1: the program has one input
  ValueId output = -1;
  std::vector<Step> steps;

  bool has_side() const { return side >= 0; }
  int width(ValueId value) const { return widths.at(static_cast<std::size_t>(value)); }
};

std::vector<ValueId> inputs_of(const Step& step);
ValueId output_of(const Step& step);

// The values that linear layers read, each once.
std::vector<ValueId> linear_inputs(const Program& program);

// Throws Error(kArtifact) unless every step reads values produced before it, writes a new one, and widths
// fit.
void validate(const Program& program);

}  // namespace fct
