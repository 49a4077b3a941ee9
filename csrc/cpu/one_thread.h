#pragma once

#include <omp.h>

namespace fct::cpu {

// Our threads are the parallelism: the matrix library's own would only fight them.
class OneThreadPerCaller {
 public:
  OneThreadPerCaller() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThreadPerCaller() { omp_set_num_threads(before_); }
  OneThreadPerCaller(const OneThreadPerCaller&) = delete;
  OneThreadPerCaller& operator=(const OneThreadPerCaller&) = delete;

 private:
  int before_;
};

}  // namespace fct::cpu
