// Vectors of floats. The wheel is built for any x86-64: loops are compiled for several levels and picked when
// run.
#pragma once

#include <cstdint>

#include "cpu/linear_op.h"

// For loops that any compiler vectorises, and arithmetic of any width.
#define FCT_VECTOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))

// For comparisons and selections, which compilers split into single elements unless a vector has the width of
// a register: defines a function that runs name_with<lanes>, always inlined, compiled for 16, 8 or 4 lanes.
#define FCT_BY_LANES(result, name, parameters, arguments)                                                   \
  __attribute__((target("arch=x86-64-v4"))) result name##_16 parameters {                                   \
    return name##_with<16> arguments;                                                                       \
  }                                                                                                         \
  __attribute__((target("arch=x86-64-v3"))) result name##_8 parameters { return name##_with<8> arguments; } \
  result name parameters {                                                                                  \
    const int lanes = ::fct::cpu::float_lanes();                                                            \
    if (lanes == 16) return name##_16 arguments;                                                            \
    if (lanes == 8) return name##_8 arguments;                                                              \
    return name##_with<4> arguments;                                                                        \
  }

namespace fct::cpu {

template <int kLanes>
struct Vector {
  using Floats [[gnu::vector_size(4 * kLanes), gnu::aligned(4), gnu::may_alias]] = float;
  using Ints [[gnu::vector_size(4 * kLanes), gnu::aligned(4), gnu::may_alias]] = std::int32_t;
};

// Of a register that this CPU has; fewer where ONEDNN_MAX_CPU_ISA allows fewer, so that one machine can be
// several.
inline int float_lanes() {
  static const int lanes = [] {
    const int allowed = onednn_instruction_set().float_lanes;
    if (allowed >= 16 && __builtin_cpu_supports("x86-64-v4")) return 16;
    return allowed >= 8 && __builtin_cpu_supports("x86-64-v3") ? 8 : 4;
  }();
  return lanes;
}

}  // namespace fct::cpu
