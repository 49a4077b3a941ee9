#include <functional>

#include "check.h"
#include "fct/error.h"
#include "random_programs.h"

namespace fct::testing {
namespace {

// old 4, side 3 -> linear 5 -> concat 8 -> linear 8 -> add -> normalize
Program sound_program() {
  Random random(1);
  ProgramBuilder builder(random);
  const ValueId old = builder.value(4), side = builder.value(3);
  const ValueId both = builder.concat({builder.linear(old, 5, Activation::kRelu), side});
  return builder.finish(old, side, builder.normalize(builder.add(builder.linear(both, 8), both)));
}

template <typename T>
T& step(Program& program, std::size_t index) {
  return std::get<T>(program.steps.at(index));
}

TEST(validate_accepts_what_is_sound) {
  validate(sound_program());
  Random random(2);
  for (int i = 0; i < 500; ++i) validate(random_program(random));
}

TEST(validate_rejects_each_kind_of_malformed_program) {
  const std::vector<std::pair<const char*, std::function<void(Program&)>>> damages = {
      {"no values", [](Program& p) { p.widths.clear(); }},
      {"zero width", [](Program& p) { p.widths[0] = 0; }},
      {"negative width", [](Program& p) { p.widths[2] = -5; }},
      {"old out of range", [](Program& p) { p.old = 99; }},
      {"old negative", [](Program& p) { p.old = -1; }},
      {"side out of range", [](Program& p) { p.side = 99; }},
      {"output out of range", [](Program& p) { p.output = 99; }},
      {"output negative", [](Program& p) { p.output = -1; }},
      {"output is an input", [](Program& p) { p.output = p.old; }},
      {"output is the second input", [](Program& p) { p.output = p.side; }},
      {"output never produced", [](Program& p) { p.widths.push_back(8), p.output = 6 + 1; }},
      {"no steps", [](Program& p) { p.steps.clear(); }},
      {"last step missing", [](Program& p) { p.steps.pop_back(); }},
      {"reads an unknown value", [](Program& p) { step<Linear>(p, 0).input = 99; }},
      {"reads a negative value", [](Program& p) { step<Linear>(p, 0).input = -1; }},
      {"reads a later value", [](Program& p) { step<Concat>(p, 1).inputs[1] = 5; }},
      {"reads its own output", [](Program& p) { step<Add>(p, 3).right = 5; }},
      {"second input dropped", [](Program& p) { p.side = -1; }},
      {"steps out of order", [](Program& p) { std::swap(p.steps[2], p.steps[3]); }},
      {"writes an input", [](Program& p) { step<Linear>(p, 0).output = p.old; }},
      {"writes twice", [](Program& p) { step<Linear>(p, 2).output = 3; }},
      {"writes out of range", [](Program& p) { step<Normalize>(p, 4).output = 99; }},
      {"writes a negative value", [](Program& p) { step<Normalize>(p, 4).output = -1; }},
      {"weight too short", [](Program& p) { step<Linear>(p, 0).weight.pop_back(); }},
      {"weight too long", [](Program& p) { step<Linear>(p, 0).weight.push_back(0); }},
      {"no weight", [](Program& p) { step<Linear>(p, 0).weight.clear(); }},
      {"bias too short", [](Program& p) { step<Linear>(p, 0).bias.pop_back(); }},
      {"bias too long", [](Program& p) { step<Linear>(p, 0).bias.push_back(0); }},
      {"concat of nothing", [](Program& p) { step<Concat>(p, 1).inputs.clear(); }},
      {"concat too wide", [](Program& p) { step<Concat>(p, 1).inputs.push_back(p.old); }},
      {"add of different widths", [](Program& p) { step<Add>(p, 3).right = p.old; }},
      {"normalize changes the width", [](Program& p) { p.widths[6] = 7; }},
      {"a concat as wide as 2^32",
       [](Program& p) {
         p.widths = {1 << 30, 3, 4};
         p.steps = {Concat{{0, 0, 0, 0, 0}, 2}, Normalize{0, 3}};
       }},
  };
  for (const auto& [name, damage] : damages) {
    Program program = sound_program();
    damage(program);
    bool is_rejected = false;
    try {
      validate(program);
    } catch (const Error& error) {
      is_rejected = error.kind() == ErrorKind::kArtifact && std::string(error.what()).size() > 10;
    }
    CHECK(is_rejected, name);
  }
}

}  // namespace
}  // namespace fct::testing
