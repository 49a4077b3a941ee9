// What executables that run on the calling thread share.
#include "fct/engine.h"

namespace fct {
namespace {

class FinishedRun : public PendingRun {
 public:
  void wait() override {}
};

}  // namespace

std::unique_ptr<PendingRun> Executable::start(InputRows old, InputRows side, OutputRows out,
                                              std::int64_t rows, int threads, KeptRows) const {
  run(old, side, out, rows, threads);
  return std::make_unique<FinishedRun>();
}

HostMemory Executable::allocate_host(std::size_t bytes) const {
  return std::make_shared_for_overwrite<char[]>(bytes);
}

DeviceAllocation Executable::allocate_device(std::size_t) const { return nullptr; }

}  // namespace fct
