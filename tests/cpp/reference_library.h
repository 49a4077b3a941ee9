// Linear layers by plain loops, in any storage type: stands in for the matrix library at the seam of
// linear_op.h.
#pragma once

#include <functional>

#include "cpu/linear_op.h"

namespace fct::testing {

struct ReferenceOptions {
  int backwards_below = 0;  // tiles of fewer rows sum in the opposite order, as matrix libraries may
  std::function<void()> before_run = [] {};  // may throw
};

class ReferenceLibrary : public cpu::LinearLibrary {
 public:
  explicit ReferenceLibrary(ReferenceOptions options = {}) : options_(options) {}
  std::unique_ptr<cpu::LinearOp> make(const Linear& layer, const cpu::Operand& input,
                                      const cpu::Operand& output,
                                      const std::vector<int>& tile_rows) const override;

 private:
  ReferenceOptions options_;
};

}  // namespace fct::testing
