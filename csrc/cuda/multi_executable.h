// Several devices of one model: each call's rows are shared out among them, in order.
#pragma once

#include <memory>
#include <vector>

#include "fct/engine.h"

namespace fct::cuda {

class MultiExecutable : public Executable {
 public:
  // At least one; all compiled from the same program.
  explicit MultiExecutable(std::vector<std::unique_ptr<Executable>> executables);

  void run(InputRows old, InputRows side, OutputRows out, std::int64_t rows, int threads) const override;
  std::unique_ptr<PendingRun> start(InputRows old, InputRows side, OutputRows out, std::int64_t rows,
                                    int threads, KeptRows kept) const override;
  int runs_in_flight() const override { return first().runs_in_flight(); }
  HostMemory allocate_host(std::size_t bytes) const override { return first().allocate_host(bytes); }
  int old_dim() const override { return first().old_dim(); }
  int side_dim() const override { return first().side_dim(); }
  int new_dim() const override { return first().new_dim(); }
  Precision precision() const override { return first().precision(); }
  std::string device() const override;
  std::size_t device_bytes() const override;
  std::string description() const override;

 private:
  const Executable& first() const { return *executables_.front(); }

  std::vector<std::unique_ptr<Executable>> executables_;
};

}  // namespace fct::cuda
