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

struct Damage {
  const char* name;
  std::function<void(Program&)> apply;
  const char* message;
};

const Damage kDamages[] = {
    {"no values", [](Program& p) { p.widths.clear(); }, "no input"},
    {"zero width", [](Program& p) { p.widths[0] = 0; }, "less than 1 wide"},
    {"negative width", [](Program& p) { p.widths[2] = -5; }, "less than 1 wide"},
    {"old out of range", [](Program& p) { p.old = 99; }, "no input"},
    {"old negative", [](Program& p) { p.old = -1; }, "no input"},
    {"side out of range", [](Program& p) { p.side = 99; }, "second input"},
    {"output out of range", [](Program& p) { p.output = 99; }, "no step produces"},
    {"output negative", [](Program& p) { p.output = -1; }, "no step produces"},
    {"output is an input", [](Program& p) { p.output = p.old; }, "no step produces"},
    {"output is the second input", [](Program& p) { p.output = p.side; }, "no step produces"},
    {"output never produced", [](Program& p) { p.widths.push_back(8), p.output = 7; }, "no step produces"},
    {"no steps", [](Program& p) { p.steps.clear(); }, "no step produces"},
    {"last step missing", [](Program& p) { p.steps.pop_back(); }, "no step produces"},
    {"reads an unknown value", [](Program& p) { step<Linear>(p, 0).input = 99; }, "step 0: reads"},
    {"reads a negative value", [](Program& p) { step<Linear>(p, 0).input = -1; }, "step 0: reads"},
    {"reads a later value", [](Program& p) { step<Concat>(p, 1).inputs[1] = 5; }, "step 1: reads"},
    {"reads its own output", [](Program& p) { step<Add>(p, 3).right = 5; }, "step 3: reads"},
    {"second input dropped", [](Program& p) { p.side = -1; }, "step 1: reads"},
    {"steps out of order", [](Program& p) { std::swap(p.steps[2], p.steps[3]); }, "step 2: reads"},
    {"writes an input", [](Program& p) { p.steps.push_back(Normalize{0, 0}); }, "step 5: writes"},
    {"writes twice", [](Program& p) { p.steps.push_back(Normalize{3, 3}); }, "step 5: writes"},
    {"writes out of range", [](Program& p) { step<Normalize>(p, 4).output = 99; }, "step 4: writes"},
    {"writes a negative value", [](Program& p) { step<Normalize>(p, 4).output = -1; }, "step 4: writes"},
    {"weight too short", [](Program& p) { step<Linear>(p, 0).weight.pop_back(); }, "step 0: weight"},
    {"weight too long", [](Program& p) { step<Linear>(p, 0).weight.push_back(0); }, "step 0: weight"},
    {"no weight", [](Program& p) { step<Linear>(p, 0).weight.clear(); }, "step 0: weight"},
    {"bias too short", [](Program& p) { step<Linear>(p, 0).bias.pop_back(); }, "step 0: bias"},
    {"bias too long", [](Program& p) { step<Linear>(p, 0).bias.push_back(0); }, "step 0: bias"},
    {"concat of nothing", [](Program& p) { step<Concat>(p, 1).inputs.clear(); }, "step 1: reads nothing"},
    {"concat too wide", [](Program& p) { step<Concat>(p, 1).inputs.push_back(p.old); }, "step 1: output"},
    {"add of different widths", [](Program& p) { step<Add>(p, 3).right = p.old; }, "different widths"},
    {"normalize changes the width", [](Program& p) { p.widths[6] = 7; }, "step 4: output"},
    {"a concat of 2^32 + 4 columns is not 4 wide",
     [](Program& p) {
       p.widths = {1 << 30, 4, 4};
       p.steps = {Concat{{0, 0, 0, 0, 1}, 2}};
       p.output = 2;
     },
     "step 0: output"},
};

TEST(validate_rejects_each_kind_of_malformed_program) {
  for (const Damage& damage : kDamages) {
    Program program = sound_program();
    damage.apply(program);
    std::string message = "accepted";
    try {
      validate(program);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kArtifact, damage.name);
      message = error.what();
    }
    CHECK(message.find(damage.message) != std::string::npos, std::string(damage.name) + ": " + message);
  }
}

}  // namespace
}  // namespace fct::testing
