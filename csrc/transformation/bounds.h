// How large the inputs of a program may be before a value inside it can overflow.
#pragma once

#include "fct/program.h"

namespace fct {

// The largest absolute value of an input element up to which no activation can be handed an overflow, or, if
// `everywhere`, up to which nothing overflows at all: as an 8-bit integer infinity looks like any other.
// Beyond it, a sum may become infinite, or NaN as infinity less infinity, and ReLU turns NaN into 0: a wrong
// result that looks like any other. FLT_MAX where nothing can hide an overflow, as all others show in the
// result. A bound by absolute row sums, far below which embeddings stay: some 1e30 for the models of the
// papers.
float largest_safe_input(const Program& program, bool everywhere = false);

}  // namespace fct
